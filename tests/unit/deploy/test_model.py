"""Finding a model and holding its weights against what the hub recorded."""

from __future__ import annotations

import hashlib
import json

import pytest
from sgl_kernel_rebuild.deploy.model import find_model, verify
from sgl_kernel_rebuild.errors import DeployError, HostError

WEIGHTS = b"weights" * 1000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
COMMIT = "0" * 40


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A model as the hub's cache stores it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    stored = tmp_path / "hub" / "models--some--model"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (stored / folder).mkdir(parents=True)
    (stored / "refs" / "main").write_text(COMMIT)
    (stored / "blobs" / SHA256).write_bytes(WEIGHTS)
    snapshot = stored / "snapshots" / COMMIT
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{SHA256}")
    (snapshot / "config.json").write_text("{}")
    return stored


@pytest.fixture
def local(tmp_path):
    """A model as the hub's client stores it with --local-dir."""
    folder = tmp_path / "local"
    metadata = folder / ".cache" / "huggingface" / "download"
    metadata.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (metadata / "model.safetensors.metadata").write_text(f"{COMMIT}\n{SHA256}\n1.0\n")
    return folder


def test_the_cache_is_found_and_right(cached):
    model = find_model("some/model")
    assert model.mount == cached
    assert model.weight_bytes == len(WEIGHTS)
    assert [entry["hash"] for entry in verify(model, {}).values()] == [SHA256]


def test_a_damaged_blob_is_named(cached):
    (cached / "blobs" / SHA256).write_bytes(WEIGHTS[:-1] + b"X")
    with pytest.raises(DeployError, match=f"model.safetensors: expected {SHA256}, got "):
        verify(find_model("some/model"), {})


def test_a_local_folder_is_right(local):
    assert verify(find_model(str(local)), {})


def test_a_git_hash_is_a_record_too(local):
    digest = hashlib.sha1(b"blob %d\0" % len(WEIGHTS) + WEIGHTS).hexdigest()
    path = local / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    path.write_text(f"{COMMIT}\n{digest}\n1.0\n")
    assert verify(find_model(str(local)), {})


def test_a_file_without_a_record_is_refused(local):
    (local / ".cache" / "huggingface" / "download" / "model.safetensors.metadata").unlink()
    with pytest.raises(DeployError, match=r"no hash is recorded for it[\s\S]*--unverified"):
        verify(find_model(str(local)), {})
    (local / "SHA256SUMS").write_text(f"{SHA256}  model.safetensors\n")
    assert verify(find_model(str(local)), {})


def test_an_unchanged_file_is_hashed_once(local):
    model = find_model(str(local))
    read = []
    found = verify(model, {}, lambda name, done, size: read.append(name))
    assert read == ["model.safetensors"]
    assert verify(model, found, lambda *_: pytest.fail("read again")) == found
    (local / "model.safetensors").write_bytes(WEIGHTS[::-1])
    with pytest.raises(DeployError, match="expected"):
        verify(model, found)


def test_a_missing_shard_is_named(local):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (local / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DeployError, match=r"expected model-00001-of-00002\.safetensors, which"):
        verify(find_model(str(local)), {})
    (local / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(DeployError, match="expected an index of weights"):
        verify(find_model(str(local)), {})


def test_a_model_that_is_not_there_says_how_to_get_it(cached):
    with pytest.raises(HostError, match="hf download some/other --revision abc"):
        find_model("some/other", "abc")


def test_a_broken_config_is_named(local):
    (local / "config.json").write_text("[")
    with pytest.raises(DeployError, match=r"config.json: expected JSON"):
        find_model(str(local)).config()
