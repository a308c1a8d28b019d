"""Adds wheels to an index: immutable, one writer at a time, whole at every moment.

Everything is written and flushed to disk under ``.publish/`` first; then the journal; then each file
is moved into place: wheels, their metadata, project pages, root pages, the page for people. A page
therefore never names a file that is not there. A publisher that dies leaves the old pages, or new ones
that are whole; the next one reads the journal and finishes the job, because pages are a function of the
wheels.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from sgl_kernel_rebuild.errors import PublishError
from sgl_kernel_rebuild.index._pages import HTML_PAGE, IndexedWheel, render_project, render_root
from sgl_kernel_rebuild.index._store import (
    JOURNAL,
    LOCK,
    METADATA_SUFFIX,
    SIMPLE,
    STAGE,
    describe,
    list_wheels,
    read_journal,
    wheels_on_disk,
)
from sgl_kernel_rebuild.index._wheel import CHUNK, Wheel, read_wheel, sha256_of
from sgl_kernel_rebuild.page import PageWheel, render_index

__all__ = ["Published", "publish"]

LOCK_TIMEOUT = 60.0
"""Seconds; a publication takes well under one."""


@dataclass(frozen=True)
class Published:
    """One wheel of a publication; ``is_new`` is false where the index listed these very bytes before."""

    wheel: IndexedWheel
    is_new: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "filename": self.wheel.filename,
            "sha256": self.wheel.sha256,
            "size": self.wheel.size,
            "new": self.is_new,
        }


@dataclass(frozen=True)
class _Step:
    """One file to be put in place: the bytes, or the wheel to copy them from."""

    target: Path
    content: bytes | Wheel

    def is_done(self) -> bool:
        if isinstance(self.content, Wheel):
            # A wheel that is there has these bytes: _refuse_changes has seen to it.
            return self.target.exists()
        try:
            return self.target.read_bytes() == self.content
        except FileNotFoundError:
            return False


def publish(wheels: Sequence[Path], index: Path, *, timeout: float = LOCK_TIMEOUT) -> list[Published]:
    """Add ``wheels`` to the index directory ``index``, which is made if it is not there.

    All wheels are checked before anything is written. Publishing the same bytes again succeeds and
    changes nothing. An interrupted earlier publication is completed; with no wheels, only that.

    Raises BinaryError (a file is no whole wheel) and PublishError (a name that says something else
    than the wheel, other bytes under a published name, no lock within ``timeout`` seconds, a directory
    that cannot be written).
    """
    offered = _read_offered(wheels)
    try:
        index.mkdir(parents=True, exist_ok=True)
        with FileLock(index / LOCK, timeout=timeout):
            return _publish(offered, index)
    except Timeout as err:
        raise PublishError(
            f"publish: {index}: expected the lock within {timeout:g} s, got none: another publisher holds it"
            "\nWait for it to finish, or end it, and publish again."
        ) from err
    except OSError as err:
        raise PublishError(
            f"publish: {index}: expected a writable directory with room for the wheels, got {describe(err)}"
            "\nNothing that was there has changed; make room or give permission, and publish again."
        ) from err


def _read_offered(paths: Iterable[Path]) -> dict[str, Wheel]:
    offered: dict[str, Wheel] = {}
    for path in paths:
        wheel = read_wheel(path)
        other = offered.setdefault(path.name, wheel)
        if other.entry.sha256 != wheel.entry.sha256:
            raise PublishError(
                f"publish: {path}: expected sha256 {other.entry.sha256} as in {other.path}, got"
                f" {wheel.entry.sha256}\nPublish one of the two."
            )
    return offered


def _publish(offered: dict[str, Wheel], index: Path) -> list[Published]:
    listed = {wheel.filename: wheel for wheel in list_wheels(index)}
    journal = read_journal(index)
    on_disk = wheels_on_disk(index)
    _refuse_strangers(index, on_disk - offered.keys() - listed.keys() - journal)
    _refuse_gaps(index, listed.keys() - on_disk - offered.keys())
    _refuse_changes(index, offered, listed, on_disk)

    resumed = (journal & on_disk) - offered.keys()
    incoming = [*(read_wheel(index / name) for name in sorted(resumed)), *offered.values()]
    entries = listed | {wheel.entry.filename: wheel.entry for wheel in incoming}
    _refuse_twins(index, entries.values())

    steps = [step for step in _plan(index, incoming, entries.values()) if not step.is_done()]
    _sweep(index)
    if steps:
        _put_in_place(index, steps, journal | {wheel.entry.filename for wheel in incoming})
    _close_journal(index)
    return [Published(wheel.entry, name not in listed) for name, wheel in offered.items()]


def _refuse_strangers(index: Path, names: set[str]) -> None:
    """Wheels that nobody published would be offered to users unproven."""
    if names:
        raise PublishError(
            f"publish: {index}: expected only published wheels, got {', '.join(sorted(names))}"
            "\nPublish them by name, or remove them."
        )


def _refuse_gaps(index: Path, names: set[str]) -> None:
    if names:
        raise PublishError(
            f"publish: {index}: expected every listed wheel, found no {', '.join(sorted(names))}"
            "\nPut them back, or publish them again."
        )


def _refuse_changes(
    index: Path, offered: dict[str, Wheel], listed: dict[str, IndexedWheel], on_disk: set[str]
) -> None:
    """A published file name keeps its bytes: installers cache by name and pin by hash."""
    for name, wheel in offered.items():
        known = [listed[name].sha256] if name in listed else []
        if name in on_disk:
            with (index / name).open("rb") as file:
                known.append(sha256_of(file)[0])
        for sha256 in known:
            if sha256 != wheel.entry.sha256:
                raise PublishError(
                    f"publish: {wheel.path}: expected sha256 {sha256} as published in {index}, got"
                    f" {wheel.entry.sha256}\nGive the new wheel a new version; published files never change."
                )


def _refuse_twins(index: Path, wheels: Iterable[IndexedWheel]) -> None:
    """Two spellings of one wheel (a name in other case, 1.0 and 1.0.0) would go round immutability."""
    seen: dict[object, str] = {}
    for wheel in wheels:
        other = seen.setdefault(wheel.identity, wheel.filename)
        if other != wheel.filename:
            raise PublishError(
                f"publish: {index}: expected one wheel per name, version, build and tags, got {other} and"
                f" {wheel.filename}\nPublish one of the two, or give the new wheel a new version."
            )


def _plan(index: Path, incoming: list[Wheel], entries: Iterable[IndexedWheel]) -> list[_Step]:
    """The files of the new state, in the order in which they may become visible."""
    steps = [_Step(index / wheel.entry.filename, wheel) for wheel in incoming]
    for wheel in incoming:
        steps.append(_Step(index / f"{wheel.entry.filename}{METADATA_SUFFIX}", wheel.metadata))
    projects: dict[str, list[IndexedWheel]] = {}
    for entry in entries:
        projects.setdefault(entry.project, []).append(entry)
    simple = index / SIMPLE
    for project in sorted(projects):
        for name, page in render_project(project, projects[project]).items():
            steps.append(_Step(simple / project / name, page))
    for name, page in render_root(projects).items():
        steps.append(_Step(simple / name, page))
    paths = {wheel.entry.filename: wheel.path for wheel in incoming}
    steps.append(_Step(index / HTML_PAGE, _human_page(index, projects, paths)))
    return steps


def _human_page(index: Path, projects: dict[str, list[IndexedWheel]], incoming: dict[str, Path]) -> bytes:
    """The page for people, newest version first; the proofs in it are read from the wheels."""
    return render_index(
        [
            PageWheel(
                path=incoming.get(entry.filename, index / entry.filename),
                project=entry.project,
                version=str(entry.version),
                filename=entry.filename,
                url=quote(entry.filename),
                sha256=entry.sha256,
                size=entry.size,
                requires_python=entry.requires_python,
                install=entry.requirement,
            )
            for project in sorted(projects)
            for entry in sorted(
                projects[project], key=lambda wheel: (wheel.version, wheel.filename), reverse=True
            )
        ]
    )


def _put_in_place(index: Path, steps: list[_Step], journal: set[str]) -> None:
    stage = index / STAGE
    stage.mkdir(exist_ok=True)
    staged = [stage / f"{number}" for number in range(len(steps))]
    try:
        for path, step in zip(staged, steps, strict=True):
            _write(path, step.content)
        _write(stage / "journal", json.dumps(sorted(journal)).encode())
    except BaseException:
        # The write error is what the user needs to see, not a second one from the clean-up.
        with contextlib.suppress(OSError):
            _sweep(index)
        raise
    os.replace(stage / "journal", index / JOURNAL)
    _sync(stage)
    _sync(index)
    for path, step in zip(staged, steps, strict=True):
        _make_folder(step.target.parent)
        os.replace(path, step.target)
        _sync(step.target.parent)


def _write(path: Path, content: bytes | Wheel) -> None:
    with path.open("xb") as file:
        if isinstance(content, Wheel):
            with content.path.open("rb") as source:
                shutil.copyfileobj(source, file, CHUNK)
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if isinstance(content, Wheel):
        with path.open("rb") as file:
            if (sha256 := sha256_of(file)[0]) != content.entry.sha256:
                raise PublishError(
                    f"publish: {content.path}: expected sha256 {content.entry.sha256} as first read, got"
                    f" {sha256}: the file changed meanwhile\nWait until its build is done, and publish again."
                )


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir()
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Make the renames in a folder durable, so that a power cut keeps their order."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(index: Path) -> None:
    """Remove staged files; under the lock they can only be those of a publisher that is gone."""
    stage = index / STAGE
    if not stage.is_dir():
        return
    for path in stage.iterdir():
        if path != index / JOURNAL:
            path.unlink()
    if not (index / JOURNAL).exists():
        stage.rmdir()


def _close_journal(index: Path) -> None:
    (index / JOURNAL).unlink(missing_ok=True)
    if (index / STAGE).is_dir():
        (index / STAGE).rmdir()
