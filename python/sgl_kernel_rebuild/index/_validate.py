"""Reads an index back, as an installer and a suspicious reader would, and reports all that is wrong.

The pages are parsed, not rendered anew, so that a fault in the writer cannot hide itself. Wheels that
the journal names may be on some pages and not yet on others; that is no violation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from packaging.utils import parse_wheel_filename

from sgl_kernel_rebuild.errors import FactoryError, PublishError
from sgl_kernel_rebuild.index._pages import (
    HTML_PAGE,
    JSON_PAGE,
    IndexedWheel,
    PageError,
    read_links,
    read_project_html,
    read_project_json,
    read_root_html,
    read_root_json,
    wheel_url,
)
from sgl_kernel_rebuild.index._store import METADATA_SUFFIX, SIMPLE, describe, read_journal, wheels_on_disk
from sgl_kernel_rebuild.index._wheel import Wheel, read_wheel

__all__ = ["Violation", "validate"]

T = TypeVar("T")

# A publication during the reading mixes old and new; it takes well under a second, so a few suffice.
_ATTEMPTS = 4


@dataclass(frozen=True, order=True)
class Violation:
    """``path`` is relative to the index directory; ``rule`` is a stable name for the kind of fault.

    Rules: ``page`` (missing or unreadable), ``agreement`` (HTML and JSON differ), ``project`` (a wheel on
    another project's page), ``link``, ``hash``, ``size``, ``metadata``, ``requires-python`` (the page says
    something else than the wheel), ``wheel`` (no readable wheel), ``orphan`` (on disk, on no page).
    """

    path: str
    rule: str
    message: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def validate(index: Path) -> list[Violation]:
    """All violations of the index directory ``index``, sorted; empty where it is whole.

    A directory into which nothing was published yet is whole. Raises PublishError where the directory
    or its journal cannot be read at all.
    """
    try:
        for _ in range(_ATTEMPTS):
            state = _state(index)
            violations = sorted(set(_Validation(index).run()))
            if not violations or _state(index) == state:
                break
        return violations
    except OSError as err:
        raise PublishError(
            f"index: {index}: expected a readable directory, got {describe(err)}"
            "\nCheck the path and its permissions."
        ) from err


def _state(index: Path) -> set[tuple[str, int]]:
    """Names and inodes: every publication moves at least one new file into place."""
    paths = [
        index / HTML_PAGE,
        *index.glob("*.whl*"),
        *(index / SIMPLE).glob("*"),
        *(index / SIMPLE).glob("*/*"),
    ]
    return {(str(path), path.lstat().st_ino) for path in paths if os.path.lexists(path)}


class _Validation:
    def __init__(self, index: Path) -> None:
        self.index = index
        self.simple = index / SIMPLE
        self.on_disk = wheels_on_disk(index)
        self.pending = read_journal(index)
        self.pending_projects = {parse_wheel_filename(name)[0] for name in self.pending}
        self.listed: list[IndexedWheel] = []
        self.found: list[Violation] = []

    def run(self) -> list[Violation]:
        if self.simple.is_dir():
            self._check_root()
        elif self.on_disk - self.pending:
            self._report(self.simple, "page", "expected the pages of the index, found no such folder")
        self._check_wheels()
        self._check_human_page()
        self._check_orphans()
        return self.found

    def _report(self, path: Path, rule: str, message: str) -> None:
        self.found.append(Violation(path.relative_to(self.index).as_posix(), rule, message))

    def _read(self, path: Path, read: Callable[[bytes], list[T]], *, is_pending: bool) -> list[T]:
        try:
            return read(path.read_bytes())
        except PageError as err:
            self._report(path, "page", str(err))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if not is_pending:
                self._report(path, "page", "expected a page, found no such file")
        return []

    def _check_root(self) -> None:
        is_pending = bool(self.pending)
        in_html = set(self._read(self.simple / HTML_PAGE, read_root_html, is_pending=is_pending))
        in_json = set(self._read(self.simple / JSON_PAGE, read_root_json, is_pending=is_pending))
        self._check_agreement(
            self.simple, in_html - self.pending_projects, in_json - self.pending_projects, "project"
        )
        folders = {path.name for path in self.simple.iterdir() if path.is_dir()}
        for project in sorted(in_html | in_json | folders):
            self._check_project(project)
        for project in sorted(folders - in_html - in_json - self.pending_projects):
            self._report(self.simple / project, "orphan", "expected a link on the root page, found none")

    def _check_project(self, project: str) -> None:
        folder = self.simple / project
        is_pending = project in self.pending_projects
        in_html = self._read(folder / HTML_PAGE, read_project_html, is_pending=is_pending)
        in_json = self._read(
            folder / JSON_PAGE, lambda page: read_project_json(page, project), is_pending=is_pending
        )
        self._check_agreement(folder, set(self._comparable(in_html)), set(self._comparable(in_json)), "wheel")
        for wheel in [*in_html, *in_json]:
            if wheel.project != project:
                self._report(
                    folder,
                    "project",
                    f"expected wheels of {project}, got {wheel.filename} of {wheel.project}",
                )
        self.listed += [*in_html, *in_json]

    def _comparable(self, wheels: Iterable[IndexedWheel]) -> Iterator[tuple[str | None, ...]]:
        for wheel in wheels:
            if wheel.filename not in self.pending:
                yield wheel.filename, wheel.url, wheel.sha256, wheel.requires_python, wheel.metadata_sha256

    def _check_agreement(self, folder: Path, in_html: set[T], in_json: set[T], what: str) -> None:
        for page, only in ((HTML_PAGE, in_html - in_json), (JSON_PAGE, in_json - in_html)):
            for item in only:
                name = item[0] if isinstance(item, tuple) else item
                self._report(
                    folder,
                    "agreement",
                    f"{what} {name}: expected the same on {HTML_PAGE} and {JSON_PAGE}, only {page} has it so",
                )

    def _check_wheels(self) -> None:
        for filename in sorted({wheel.filename for wheel in self.listed}):
            path = self.index / filename
            if filename not in self.on_disk:
                self._report(path, "link", "expected the wheel that the pages list, found no such file")
                continue
            try:
                wheel = read_wheel(path)
            except FactoryError as err:
                self._report(path, "wheel", str(err).splitlines()[0])
                continue
            for entry in self.listed:
                if entry.filename == filename:
                    self._check_entry(path, entry, wheel)

    def _check_entry(self, path: Path, entry: IndexedWheel, wheel: Wheel) -> None:
        def expect(rule: str, expected: object, got: object) -> None:
            if expected != got:
                self._report(path, rule, f"expected {expected} as in the wheel, the page has {got}")

        expect("link", wheel_url(path.name), entry.url)
        expect("hash", wheel.entry.sha256, entry.sha256)
        if entry.size is not None:
            expect("size", wheel.entry.size, entry.size)
        expect("requires-python", wheel.entry.requires_python, entry.requires_python)
        expect("metadata", wheel.entry.metadata_sha256, entry.metadata_sha256)
        metadata = path.with_name(f"{path.name}{METADATA_SUFFIX}")
        if not metadata.is_file():
            self._report(metadata, "metadata", "expected the METADATA of the wheel, found no such file")
        elif metadata.read_bytes() != wheel.metadata:
            self._report(metadata, "metadata", "expected the METADATA of the wheel, got other bytes")

    def _check_human_page(self) -> None:
        """The page for people names every listed wheel with its hash, and no other."""
        path = self.index / HTML_PAGE
        if not self.listed and not path.exists():
            return
        wanted = {wheel.filename: wheel.sha256 for wheel in self.listed if wheel.filename not in self.pending}
        try:
            links = read_links(path.read_bytes())
        except PageError as err:
            self._report(path, "page", str(err))
            return
        except FileNotFoundError:
            if not self.pending:
                self._report(path, "page", "expected the page for people, found none")
            return
        for name in sorted(wanted.keys() | (links.keys() - self.pending)):
            if wanted.get(name) != links.get(name):
                self._report(
                    path,
                    "page",
                    f"{name}: expected sha256 {wanted.get(name)}, the page has {links.get(name)}",
                )

    def _check_orphans(self) -> None:
        known = {wheel.filename for wheel in self.listed} | self.pending
        for name in sorted(self.on_disk - known):
            self._report(self.index / name, "orphan", "expected every wheel on a page, found it on none")
        for path in self.index.glob(f"*.whl{METADATA_SUFFIX}"):
            if path.name.removesuffix(METADATA_SUFFIX) not in known:
                self._report(path, "orphan", "expected a listed wheel beside it, found none")
        for path in self.simple.glob("*") if self.simple.is_dir() else ():
            if not path.is_dir() and path.name not in (HTML_PAGE, JSON_PAGE):
                self._report(path, "orphan", "expected only pages of the index, got another file")
        for path in self.simple.glob("*/*") if self.simple.is_dir() else ():
            if path.name not in (HTML_PAGE, JSON_PAGE):
                self._report(path, "orphan", "expected only pages of the index, got another file")
