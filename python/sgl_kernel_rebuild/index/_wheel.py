"""Reads from a wheel what the index needs, and refuses files that are not whole wheels.

Specification: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from packaging.metadata import RawMetadata, parse_email
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import NormalizedName, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from sgl_kernel_rebuild.errors import BinaryError, PublishError
from sgl_kernel_rebuild.index._pages import IndexedWheel, wheel_url

__all__ = ["CHUNK", "Wheel", "read_wheel", "sha256_of"]

CHUNK = 1 << 20
"""Bytes read at a time where a whole file passes through."""

# Stricter than the parser: names end up in URLs, in HTML and on terminals.
_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._!+-]*\.whl")
_MAX_METADATA = 16 << 20
# Deflate expands at most 1032 times; what claims more is no wheel but an attempt to keep us busy.
_MAX_RATIO = 1032

# What zipfile and the decompressors raise on damaged archives (RuntimeError: an encrypted member).
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class Wheel:
    """A wheel on disk: its line in the index and the bytes of its METADATA file."""

    path: Path
    entry: IndexedWheel
    metadata: bytes


def read_wheel(path: Path) -> Wheel:
    """Read and check one wheel: name, archive (every member's CRC), METADATA.

    Raises BinaryError where the file cannot be read as a wheel, and PublishError where it is one
    that must not be published (its name is not a wheel's, or METADATA says something else).
    """
    project, version = _parse_filename(path)
    try:
        # A FIFO or a device would block or never end.
        if not stat.S_ISREG(path.stat().st_mode):
            _unreadable(path, "expected a regular file, got something else")
        with path.open("rb") as file:
            sha256, size = sha256_of(file)
            metadata = _read_metadata(path, file, size, project, version)
    except OSError as err:
        raise BinaryError(
            f"wheel: {path}: expected a readable file, got {err.strerror or err}\nCheck the path."
        ) from err
    entry = IndexedWheel(
        filename=path.name,
        url=wheel_url(path.name),
        sha256=sha256,
        size=size,
        requires_python=_check_metadata(path, metadata, project, version),
        metadata_sha256=hashlib.sha256(metadata).hexdigest(),
    )
    return Wheel(path, entry, metadata)


def sha256_of(file: IO[bytes]) -> tuple[str, int]:
    """Hexadecimal sha256 and length in bytes of what is left in ``file``."""
    digest = hashlib.sha256()
    size = 0
    while chunk := file.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _parse_filename(path: Path) -> tuple[NormalizedName, Version]:
    try:
        if not _FILENAME.fullmatch(path.name):
            raise ValueError("a character that no wheel name has")
        project, version, _, _ = parse_wheel_filename(path.name)
        return canonicalize_name(project, validate=True), version
    except ValueError as err:
        raise PublishError(
            f"wheel: {path}: expected a name like name-version-python-abi-platform.whl, got {path.name!r}"
            f" ({err})\nPublish the file under the name that the build gave it."
        ) from err


def _read_metadata(
    path: Path, file: IO[bytes], size: int, project: NormalizedName, version: Version
) -> bytes:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            name, count = Counter(names).most_common(1)[0] if names else ("", 0)
            if count > 1:
                _unreadable(path, f"expected every member once, got {name!r} {count} times")
            if (unpacked := sum(member.file_size for member in members)) > size * _MAX_RATIO:
                _unreadable(path, f"expected at most {size * _MAX_RATIO} bytes unpacked, got {unpacked}")
            if (damaged := archive.testzip()) is not None:
                _unreadable(path, f"expected whole members, got a wrong CRC in {damaged!r}")
            member = f"{_dist_info(path, names, project, version)}/METADATA"
            if member not in names:
                _unreadable(path, f"expected {member}, got no such member")
            if (length := archive.getinfo(member).file_size) > _MAX_METADATA:
                _unreadable(path, f"expected METADATA of at most {_MAX_METADATA} bytes, got {length}")
            return archive.read(member)
    except _ZIP_ERRORS as err:
        raise BinaryError(
            f"wheel: {path}: expected a zip archive, got {type(err).__name__}: {err}\n{_AGAIN}"
        ) from err


def _dist_info(path: Path, names: list[str], project: NormalizedName, version: Version) -> str:
    """The one ``<name>-<version>.dist-info`` folder, which must be that of the file name."""
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    found = [folder for folder in folders if folder.endswith(".dist-info")]
    if len(found) != 1:
        _unreadable(path, f"expected one .dist-info folder, got {len(found)} {found}")
    name, _, number = found[0].removesuffix(".dist-info").partition("-")
    if canonicalize_name(name) != project or _version(number) != version:
        _disagrees(path, ".dist-info folder", f"{project} {version}", found[0])
    return found[0]


def _check_metadata(path: Path, metadata: bytes, project: NormalizedName, version: Version) -> str | None:
    """Hold Name and Version against the file name; return Requires-Python, None where there is none."""
    raw, unparsed = parse_email(metadata)
    for field in ("name", "version", "requires-python"):
        if field in unparsed:
            _disagrees(path, f"METADATA {field}", "one readable value", str(unparsed[field]))
    name = raw.get("name", "")
    if canonicalize_name(name) != project:
        _disagrees(path, "METADATA Name", repr(str(project)), repr(name))
    if _version(raw.get("version", "")) != version:
        _disagrees(path, "METADATA Version", repr(str(version)), repr(raw.get("version", "")))
    return _requires_python(path, raw)


def _requires_python(path: Path, raw: RawMetadata) -> str | None:
    value = raw.get("requires_python")
    if value is None:
        return None
    try:
        SpecifierSet(value)
    except InvalidSpecifier as err:
        raise PublishError(
            f"wheel: {path}: METADATA Requires-Python: expected a version specifier, got {value!r}"
            f"\nCorrect the project's requires-python and build again."
        ) from err
    return " ".join(value.split())


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


_AGAIN = "Build or download the wheel again."


def _unreadable(path: Path, what: str) -> NoReturn:
    raise BinaryError(f"wheel: {path}: {what}\n{_AGAIN}")


def _disagrees(path: Path, where: str, expected: str, got: str) -> NoReturn:
    raise PublishError(
        f"wheel: {path}: {where}: expected {expected}, got {got}"
        "\nPublish the file under the name that the build gave it, or build again."
    )
