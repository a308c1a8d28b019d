"""A deployment's folder: whole files, one key, one owner, whatever is killed when."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest
from sgl_kernel_rebuild.deploy import state
from sgl_kernel_rebuild.deploy.state import Deployment, read_key
from sgl_kernel_rebuild.errors import DeployError


@pytest.fixture
def deployment(tmp_path):
    return Deployment("one", tmp_path)


def mode(path):
    return path.stat().st_mode & 0o777


def test_nothing_is_written_before_it_is_locked(deployment, tmp_path):
    assert not list(tmp_path.iterdir())
    with pytest.raises(DeployError, match="nothing is deployed under this name"):
        deployment.record()


def test_the_key_is_made_once_and_is_the_owner_s(deployment):
    with deployment.locked():
        key = deployment.ensure_key()
        assert deployment.ensure_key() == key
    assert len(key) >= 43
    assert mode(deployment.key_file) == 0o600
    assert mode(deployment.folder) == 0o700
    assert read_key(deployment.key_file) == key
    with Deployment("two", deployment.folder.parent).locked():
        assert Deployment("two", deployment.folder.parent).ensure_key() != key


@pytest.mark.parametrize("text", ["", "short", "a b" * 9])
def test_a_key_that_is_none(deployment, text):
    with deployment.locked():
        deployment.ensure_key()
    deployment.key_file.write_text(text)
    with pytest.raises(DeployError, match="at least 16 printable characters without spaces"):
        read_key(deployment.key_file)


def test_no_key(tmp_path):
    with pytest.raises(DeployError, match="expected a readable file with the API key"):
        read_key(tmp_path / "none")


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", ".hidden", "a" * 64])
def test_names_that_are_none(tmp_path, name):
    with pytest.raises(DeployError, match="deployment: name: expected"):
        Deployment(name, tmp_path)


def test_a_value_that_compose_cannot_hold_is_refused(deployment):
    with deployment.locked(), pytest.raises(DeployError, match="X: expected no quote"):
        deployment.write_environment({"X": "a'b"})
    assert not deployment.env_file.exists()


def test_a_damaged_record_is_named(deployment):
    with deployment.locked():
        deployment.write_record({"mode": "run"})
    for text in ("[", "[]"):
        deployment.record_file.write_text(text)
        with pytest.raises(DeployError, match=r"deployment\.json: expected"):
            deployment.record()


def test_a_second_command_waits_and_is_told(deployment):
    with deployment.locked():
        errors = []

        def other():
            try:
                with Deployment(deployment.name, deployment.folder.parent).locked(timeout=0.05):
                    errors.append("entered")
            except DeployError as err:
                errors.append(str(err))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another command has been changing it" in errors[0]


def _ensure(root, name, pipe):
    deployment = Deployment(name, root)
    with deployment.locked(timeout=60):
        key = deployment.ensure_key()
        deployment.write_record({"mode": "local", "pid": os.getpid()})
    pipe.send(str(key))


def test_many_at_once_agree_on_one_key_each(tmp_path):
    context = multiprocessing.get_context("spawn")
    ends = []
    for number in range(6):
        ours, theirs = context.Pipe()
        name = f"name{number % 2}"
        context.Process(target=_ensure, args=(tmp_path, name, theirs), daemon=True).start()
        ends.append((name, ours))
    keys: dict[str, set[str]] = {}
    for name, end in ends:
        keys.setdefault(name, set()).add(end.recv())
    assert {name: len(made) for name, made in keys.items()} == {"name0": 1, "name1": 1}
    assert keys["name0"] != keys["name1"]
    for name in keys:
        assert Deployment(name, tmp_path).record()["mode"] == "local"


# Writes everything, and is killed at the system call whose number is given.
_VICTIM = """
import os, signal, sys
from pathlib import Path
from sgl_kernel_rebuild.deploy.state import Deployment
left = [int(sys.argv[2])]
def counted(call):
    def wrapper(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapper
for name in ("open", "fsync", "close", "replace", "rename", "fdopen", "mkdir"):
    setattr(os, name, counted(getattr(os, name)))
Path.replace = counted(Path.replace)
deployment = Deployment("one", Path(sys.argv[1]))
with deployment.locked():
    deployment.ensure_key()
    deployment.write_server(["--model-path", "x"], {"A": "b"})
    deployment.write_environment({"A": "b"})
    deployment.write_record({"mode": "run"})
print("done")
"""


def test_killed_at_any_point_no_file_is_half_written(tmp_path):
    whole = 0
    for point in range(0, 60, 2):
        root = tmp_path / str(point)
        command = [sys.executable, "-c", _VICTIM, str(root), str(point)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        deployment = Deployment("one", root)
        if deployment.key_file.exists():
            assert len(read_key(deployment.key_file)) == 43
        for path in (deployment.server_file, deployment.record_file):
            assert not path.exists() or json.loads(path.read_text())
        assert not deployment.env_file.exists() or deployment.env_file.read_text() == "A='b'\n"
        with deployment.locked():
            deployment.ensure_key()
            assert not list(deployment.folder.glob(".new-*"))
        if done.stdout == "done\n":
            whole += 1
            break
        assert done.returncode == -signal.SIGKILL
    assert whole == 1


def test_a_full_disk_leaves_the_old_file(deployment, monkeypatch):
    with deployment.locked():
        deployment.write_record({"mode": "run"})

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(state.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            deployment.write_record({"mode": "local"})
    assert deployment.record() == {"mode": "run"}
    assert not list(deployment.folder.glob(".new-*"))
