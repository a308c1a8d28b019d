"""The model on disk: where it is, and whether its files are what the hub records.

The hub names every large file by its SHA-256 and every small one by its git hash, and both ways in which
its client stores a model keep that record: the cache names each blob by it, ``--local-dir`` writes it to
``.cache/huggingface/download/<file>.metadata`` (second line). A folder from elsewhere may have a
``SHA256SUMS``. Files are hashed once; a file whose size and time are unchanged is not read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_kernel_rebuild.errors import DeployError, HostError

__all__ = ["Model", "find_model", "verify"]

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_GIT = re.compile(r"^[0-9a-f]{40}$")
_BLOCK = 1 << 22

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Model:
    """A model's folder; ``mount`` is what a container needs (the cache links into its own parent)."""

    folder: Path
    mount: Path

    def config(self) -> dict[str, Any]:
        """Return ``config.json``.

        Raises:
            DeployError: there is none, or it is no JSON object.
        """
        path = self.folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise DeployError(f"model: {path}: expected JSON, got {err}") from err
        if not isinstance(config, dict):
            raise DeployError(f"model: {path}: expected a JSON object")
        return config

    def weight_files(self) -> list[Path]:
        """Return the weight files, in one format: the safetensors where there are any."""
        for pattern in _WEIGHTS:
            if files := sorted(self.folder.glob(pattern)):
                return files
        return []

    @property
    def weight_bytes(self) -> int | None:
        """Size of the weight files; None where there are none (dummy weights)."""
        return sum(path.stat().st_size for path in self.weight_files()) or None


def find_model(model: str, revision: str | None = None) -> Model:
    """Return the model in a folder, or a hub name's in the hub's cache on this machine.

    Raises:
        HostError: the model is not on this machine; the message says how to get it.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Model(folder.resolve(), folder.resolve())
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    stored = cache / f"models--{model.replace('/', '--')}"
    name = revision or "main"
    try:
        commit = (stored / "refs" / name).read_text(encoding="ascii").strip()
    except OSError:
        commit = name
    snapshot = stored / "snapshots" / commit
    if (snapshot / "config.json").exists():
        return Model(snapshot, stored)
    option = f" --revision {revision}" if revision else ""
    raise HostError(
        f"model: expected {model} in a folder or in the hub's cache ({cache}), got neither\n"
        f"Fetch it with: hf download {model}{option}"
    )


def verify(
    model: Model, known: Mapping[str, Any], progress: Progress = lambda name, done, size: None
) -> dict[str, Any]:
    """Hash the weight files against what the hub recorded and return what to remember of them.

    ``known`` is what an earlier call returned; ``progress`` gets file name, bytes done and bytes in all.

    Raises:
        DeployError: a file differs, or one has no record; all such files are named.
    """
    found: dict[str, Any] = {}
    faults: list[str] = []
    sums = _read_sums(model.folder / "SHA256SUMS")
    for path in _listed(model):
        expected = _recorded(model, path, sums)
        stat = path.stat()
        entry = {"size": stat.st_size, "time": stat.st_mtime_ns, "hash": expected}
        key = str(path)
        if expected is None:
            faults.append(f"{path.name}: no hash is recorded for it")
        elif known.get(key) != entry and (actual := _hash(path, expected, progress)) != expected:
            faults.append(f"{path.name}: expected {expected}, got {actual}")
        else:
            found[key] = entry
    if faults:
        raise DeployError(
            f"model: {model.folder}:\n  " + "\n  ".join(faults) + "\n"
            "Fetch it again (hf download), put a SHA256SUMS beside the files, or start with --unverified."
        )
    return found


def _listed(model: Model) -> list[Path]:
    """Return the weight files; those that the safetensors index names must all be there.

    Raises:
        DeployError: a listed file is missing.
    """
    files = model.weight_files()
    index = model.folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as err:
            raise DeployError(f"model: {index}: expected an index of weights, got {err!r}") from err
        missing = sorted(names - {path.name for path in files})
        if missing:
            raise DeployError(
                f"model: {model.folder}: expected {', '.join(missing)}, which the index names"
                "\nFetch it again (hf download)."
            )
    return files


def _recorded(model: Model, path: Path, sums: Mapping[str, str]) -> str | None:
    if path.is_symlink():
        name = path.resolve().name
        if path.resolve().parent.name == "blobs" and (_SHA256.match(name) or _GIT.match(name)):
            return name
    metadata = model.folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    try:
        lines = metadata.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    if len(lines) > 1 and (_SHA256.match(lines[1]) or _GIT.match(lines[1])):
        return lines[1]
    return sums.get(path.name)


def _read_sums(path: Path) -> dict[str, str]:
    """Return the names and hashes in the format of sha256sum."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    parts = (line.split(maxsplit=1) for line in lines if line.strip())
    return {name.lstrip("*"): digest for digest, name in (p for p in parts if len(p) == 2)}


def _hash(path: Path, expected: str, progress: Progress) -> str:
    size = path.stat().st_size
    if len(expected) == 40:
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress(path.name, done, size)
    return digest.hexdigest()
