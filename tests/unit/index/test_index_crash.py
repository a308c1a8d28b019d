"""A publisher that is killed, or whose disk fails, at any step leaves an index that is whole.

The steps are not listed here: an audit hook in a child process sees every open for writing, rename,
mkdir, unlink, rmdir and flush below the index, and strikes before the n-th of them, for every n.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from sgl_kernel_rebuild.errors import PublishError
from sgl_kernel_rebuild.index import interrupted, list_wheels, publish, validate

_MAX_STEPS = 200


@pytest.fixture(autouse=True)
def _without_flushing(monkeypatch):
    """A killed process loses nothing that the kernel holds; only the place of the flush counts here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["new project", "new version", "several"])
def scene(request, make_wheel, tmp_path):
    """The index before, the wheels to be published, and a wheel that someone publishes afterwards."""
    before = tmp_path / "before"
    before.mkdir()
    if request.param != "new project":
        publish([make_wheel("demo_pkg", "1.0")], before)
    wheels = [make_wheel("demo_pkg", "2.0")]
    if request.param == "several":
        wheels += [
            make_wheel("alpha", "1.0"),
            make_wheel("zeta", "1.0", tag="py3-none-manylinux_2_28_x86_64"),
        ]
    return before, wheels, make_wheel("later", "1.0")


def test_killed_at_any_step(scene, tmp_path, snapshot):
    before, wheels, later = scene
    shutil.copytree(before, tmp_path / "reference")
    publish([*wheels, later], tmp_path / "reference")
    reference = snapshot(tmp_path / "reference")
    old = {wheel.filename for wheel in list_wheels(before)}
    new = {wheel.name for wheel in wheels}
    outcomes = set()

    for step in range(_MAX_STEPS):
        index = tmp_path / f"killed{step}"
        shutil.copytree(before, index)
        status = _publish_in_child(wheels, index, step, _kill)
        if status == 0:
            break
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL

        assert validate(index) == [], f"step {step}"
        offered = {wheel.filename for wheel in list_wheels(index)}
        assert old <= offered <= old | new
        outcomes.add((bool(interrupted(index)), frozenset(offered)))

        publish([later], index)
        assert validate(index) == []
        assert interrupted(index) == []
        assert not (index / ".publish").exists()
        publish(wheels, index)
        assert snapshot(index) == reference
    else:
        pytest.fail(f"no end after {_MAX_STEPS} steps")
    # The hook did strike before, within and after the moves into place.
    assert (False, frozenset(old)) in outcomes
    assert (True, frozenset(old)) in outcomes
    assert (True, frozenset(old | new)) in outcomes


def test_disk_fails_at_any_step(scene, tmp_path, snapshot):
    before, wheels, _ = scene
    shutil.copytree(before, tmp_path / "reference")
    publish(wheels, tmp_path / "reference")
    reference = snapshot(tmp_path / "reference")

    for step in range(_MAX_STEPS):
        index = tmp_path / f"failed{step}"
        shutil.copytree(before, index)
        status = _publish_in_child(wheels, index, step, _fail)
        if status == 0:
            break
        assert os.waitstatus_to_exitcode(status) == PublishError.exit_code
        assert validate(index) == [], f"step {step}"
        if not interrupted(index):
            names = {name for name in snapshot(index) if not name.startswith(".publish/")}
            assert names in (set(snapshot(before)), set(reference))
        publish(wheels, index)
        assert snapshot(index) == reference
    else:
        pytest.fail(f"no end after {_MAX_STEPS} steps")
    assert step > 20


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def _publish_in_child(wheels: list[Path], index: Path, step: int, strike: Callable[[], None]) -> int:
    """Publish in a forked child that is struck from its ``step``-th change on; return its wait status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _strike_from(step, index, strike)
            publish(wheels, index, timeout=5)
            status = 0
        except PublishError as err:
            status = err.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def _strike_from(step: int, index: Path, strike: Callable[[], None]) -> None:
    seen = 0
    inside = os.fspath(index)
    sync = os.fsync

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen > step:
            strike()

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            is_change = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            path = arguments[0] if arguments else None
            is_change = event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir")
        if is_change and isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(inside):
            count()

    def counted_sync(descriptor: int) -> None:
        count()
        sync(descriptor)

    sys.addaudithook(hook)
    os.fsync = counted_sync
