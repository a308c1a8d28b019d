"""Reads a target, whatever it is, into a report."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, parse_tag
from packaging.utils import canonicalize_name

from sgl_kernel_rebuild.abi import certify
from sgl_kernel_rebuild.abi._elffile import SharedObject, is_elf, read_shared_object
from sgl_kernel_rebuild.abi._fatbin import iter_code
from sgl_kernel_rebuild.abi.certificate import read_symbol_list
from sgl_kernel_rebuild.errors import BinaryError
from sgl_kernel_rebuild.wheel.archive import Wheel, open_wheel

from ._python import PythonAbi, python_abi
from ._report import AuditReport

__all__ = ["Listener", "audit"]

_TARGET = re.compile(r"(sm|compute)_(\d+)(\w*)")
_SHARED_OBJECT = re.compile(r"\.so(?:\.\d+)*$")
# What other systems' binaries begin with; a list of symbols begins with none of them.
_BINARY_HEADS = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"!<arch>")
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Listener:
    """Is told of progress: first what is read and how many bytes that are, then the bytes of each piece."""

    on_start: Callable[[str, int], None] = lambda name, size: None
    on_read: Callable[[int], None] = lambda count: None


def audit(
    target: str | os.PathLike[str],
    *,
    releases: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> list[AuditReport]:
    """Audit a file, a folder, an installed distribution or a requirement such as ``sgl-kernel==0.3.7``.

    A path that exists is taken as one. A folder gives a report of the shared objects under it (by name:
    ``.so``, ``.so.N``), if there are any, and one of each wheel; everything else gives one report.
    ``releases`` are the torch releases to compare with; by default all of the atlas. The wheel that a
    requirement names is read from the package index by HTTP ranges, member by member; nothing of it stays on
    the disk.

    Raises:
        BinaryError: the target cannot be read, or is none of these.
        HostError: a requirement was named, and the extra ``remote`` is not installed.
    """
    listener = listener or Listener()
    text = os.fspath(target)
    path = Path(text)
    if path.is_dir():
        return _folder(path, releases, listener)
    if path.exists() or os.sep in text or path.suffix == ".whl" or ".so" in path.suffixes:
        return [_file(path, releases, listener)]
    if _NAME.fullmatch(text):
        return [_installed(text, releases)]
    return [_requirement(text, releases, listener)]


class _Collection:
    """The shared objects of one target, as they come."""

    def __init__(self) -> None:
        self.objects: list[SharedObject] = []
        self.code: dict[str, tuple[str, ...]] = {}
        self.python: dict[str, PythonAbi] = {}
        self.unreadable: list[str] = []

    def add(self, found: SharedObject, stream: BinaryIO, name: str) -> None:
        """Take ``found`` in; ``name`` is what messages call it."""
        targets = {
            code.target for code in iter_code(stream, found.sections, name) if code.kind in ("cubin", "ptx")
        }
        self.objects.append(found)
        self.code[found.name] = tuple(sorted(targets, key=_order))
        self.python[found.name] = python_abi(found)

    def add_files(self, files: Iterable[tuple[str, Path]]) -> None:
        """Take in each (name, path) that is an ELF file; what cannot be read is noted."""
        for name, path in files:
            try:
                with path.open("rb") as stream:
                    if not is_elf(stream.read(4)):  # a linker script, or data
                        continue
                    self.add(
                        dataclasses.replace(read_shared_object(stream, str(path)), name=name),
                        stream,
                        str(path),
                    )
            except BinaryError as err:
                self.unreadable.append(str(err).splitlines()[0])
            except OSError as err:
                self.unreadable.append(f"audit: {path}: cannot be read: {err.strerror or err}")

    def report(
        self,
        subject: str,
        releases: Sequence[str] | None,
        tags: frozenset[Tag] = frozenset(),
        requires_torch: str | None = None,
    ) -> AuditReport:
        return AuditReport(
            certify(subject, self.objects, releases=releases),
            self.code,
            self.python,
            tags,
            requires_torch,
            tuple(self.unreadable),
        )


def _file(path: Path, releases: Sequence[str] | None, listener: Listener) -> AuditReport:
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as err:
        raise BinaryError(
            f"audit: {path}: cannot be read: {err.strerror or err}\nName a readable file."
        ) from err
    if path.suffix == ".whl":
        with open_wheel(path, on_read=listener.on_read) as wheel:
            return _wheel(wheel, releases, listener)
    if is_elf(head) or head.startswith(_BINARY_HEADS) or not head or ".so" in path.suffixes:
        collection = _Collection()
        with path.open("rb") as stream:
            found = read_shared_object(stream, str(path))
            collection.add(dataclasses.replace(found, name=path.name), stream, str(path))
        return collection.report(path.name, releases)
    listed = read_symbol_list(path)
    return AuditReport(certify(path.name, [listed], releases=releases, has_needed=False))


def _wheel(wheel: Wheel, releases: Sequence[str] | None, listener: Listener) -> AuditReport:
    collection = _Collection()
    listener.on_start(wheel.path.name, sum(wheel.members[name].file_size for name in wheel.binaries))
    for found, stream in wheel.shared_objects():
        collection.add(found, stream, f"{wheel.path.name}: {found.name}")
    # Not Wheel.metadata: whether all of METADATA is valid is not the question here.
    metadata, _ = parse_email(wheel.read(f"{wheel.dist_info}/METADATA"))
    requires = torch_requirement(metadata.get("requires_dist", ()))
    return collection.report(f"{wheel.name} {wheel.version}", releases, wheel.tags, requires)


def _folder(path: Path, releases: Sequence[str] | None, listener: Listener) -> list[AuditReport]:
    files = sorted(_walk(path))
    collection = _Collection()
    collection.add_files(
        (str(file.relative_to(path)), file) for file in files if _SHARED_OBJECT.search(file.name)
    )
    wheels = []
    for file in files:
        if file.suffix == ".whl":
            try:
                wheels.append(_file(file, releases, listener))
            except BinaryError as err:
                collection.unreadable.append(str(err).splitlines()[0])
    reports = wheels
    if collection.objects or collection.unreadable:
        reports = [collection.report(str(path), releases), *wheels]
    if not reports:
        raise BinaryError(
            f"audit: {path}: expected shared objects or wheels in this folder, got none\nName another folder."
        )
    return reports


def _walk(path: Path) -> Iterator[Path]:
    """Yield the files under ``path``, each once, whatever links lead to it."""
    seen: set[tuple[int, int]] = set()
    for folder, _, names in os.walk(path):
        for name in sorted(names):
            file = Path(folder, name)
            try:
                status = file.stat()
            except OSError:  # a link that leads nowhere
                continue
            if (status.st_dev, status.st_ino) not in seen and file.is_file():
                seen.add((status.st_dev, status.st_ino))
                yield file


def _installed(name: str, releases: Sequence[str] | None) -> AuditReport:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as err:
        raise BinaryError(
            f"audit: {name}: expected a file, a folder, an installed distribution or NAME==VERSION, got none"
            f" of them\nTo look at the package index, name a version: {name}==1.0 or '{name}>=0'."
        ) from err
    found = [
        (str(file), Path(str(distribution.locate_file(file))))
        for file in distribution.files or ()
        if _SHARED_OBJECT.search(file.name)
    ]
    collection = _Collection()
    collection.add_files(found)
    if not collection.objects and not collection.unreadable:
        raise BinaryError(
            f"audit: {name}: expected shared objects in the installed {distribution.version}, got none\n"
            "Name the folder of its binaries, if it is installed from source."
        )
    tags: set[Tag] = set()
    for line in (distribution.read_text("WHEEL") or "").splitlines():
        if line.startswith("Tag:"):
            tags |= parse_tag(line.removeprefix("Tag:").strip())
    subject = f"{canonicalize_name(distribution.metadata['Name'])} {distribution.version}"
    return collection.report(
        subject, releases, frozenset(tags), torch_requirement(distribution.requires or ())
    )


def _requirement(text: str, releases: Sequence[str] | None, listener: Listener) -> AuditReport:
    try:
        Requirement(text)
    except InvalidRequirement as err:
        raise BinaryError(
            f"audit: {text}: expected a file, a folder, an installed distribution or NAME==VERSION, got none"
            " of them\nCheck the name."
        ) from err
    from sgl_kernel_rebuild.remote import choose_wheel, open_remote

    with open_remote(choose_wheel(text), on_read=listener.on_read) as wheel:
        return _wheel(wheel, releases, listener)


def torch_requirement(requirements: Iterable[str]) -> str | None:
    """Return the requirement on torch that always holds, as ``torch==2.8.0``."""
    for line in requirements:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) == "torch" and "extra" not in str(requirement.marker or ""):
            return f"torch{requirement.specifier}"
    return None


def _order(target: str) -> tuple[str, int, str]:
    match = _TARGET.fullmatch(target)
    # Machine code before PTX, small before large.
    return ("0" if target.startswith("sm") else "1", int(match[2]) if match else 0, target)
