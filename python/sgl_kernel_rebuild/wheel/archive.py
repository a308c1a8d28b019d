"""Opens a wheel without trusting it: its names, its sizes, its hashes.

Specifications: "Binary distribution format" and "Recording installed projects" on packaging.python.org.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import os
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import BinaryIO, cast

from packaging.metadata import ExceptionGroup, Metadata
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from sgl_kernel_rebuild.abi._elffile import SharedObject, is_elf, read_shared_object
from sgl_kernel_rebuild.errors import BinaryError

from .violation import Violation

__all__ = ["DAMAGE", "Wheel", "adopt", "open_wheel", "record_digest"]

# The largest wheels of this kind hold 3 GiB; deflate expands at most 1032 times, real code 2 to 10 times.
_MAX_TOTAL = 16 << 30
_MAX_EXPANSION = 200
_SMALL = 64 << 20
_MAX_READ = 1 << 30
_MAX_MEMBERS = 200_000
_CHUNK = 1 << 20
_TRIES = 3
# What zipfile and the decompressor raise on damaged archives (RuntimeError: an encrypted member).
DAMAGE: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
_SHARED_OBJECT = re.compile(r"\.so(?:\.\d+)*$")
_NEXT_STEP = "Download or build the wheel again."


def record_digest(data: bytes) -> str:
    """Return the hash of ``data`` as RECORD has it: ``sha256=`` and URL-safe base64 without padding."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


@contextlib.contextmanager
def open_wheel(
    path: str | os.PathLike[str], *, on_read: Callable[[int], None] | None = None
) -> Iterator[Wheel]:
    """Open a wheel after checking its file name, member names and sizes.

    ``on_read`` is told the bytes unpacked of each member, piece by piece.

    Raises:
        BinaryError: the file cannot be read, is no wheel, holds names that lead out of it or twice the same,
            or would expand beyond all measure.
    """
    source = Path(path)
    _parse_name(source)
    with _reading(source):
        archive = zipfile.ZipFile(source)
        size = source.stat().st_size
    with archive:
        yield adopt(archive, source, size, on_read=on_read)


def adopt(
    archive: zipfile.ZipFile,
    path: Path,
    size: int,
    *,
    remote_errors: tuple[type[Exception], ...] = (),
    on_read: Callable[[int], None] | None = None,
) -> Wheel:
    """Return the wheel in an open archive of ``size`` bytes, after the checks of `open_wheel`.

    ``path`` names it. ``remote_errors`` is given where it does not lie on this machine: what the archive may
    raise while it fetches, in which case a member is fetched again.

    Raises:
        BinaryError: as `open_wheel` does.
    """
    name, version, tags = _parse_name(path)
    _check_members(path, archive, size)
    return Wheel(path, archive, name, version, tags, remote_errors=remote_errors, on_read=on_read)


class Wheel:
    """An open wheel. Every method that reads raises BinaryError, naming file and member, on bad data."""

    def __init__(
        self,
        path: Path,
        archive: zipfile.ZipFile,
        name: str,
        version: Version,
        tags: frozenset[Tag],
        *,
        remote_errors: tuple[type[Exception], ...] = (),
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        self.path = path
        self.archive = archive
        self.name = name
        self.version = version
        self.tags = tags
        self._remote_errors = remote_errors
        self._on_read = on_read

    @functools.cached_property
    def members(self) -> dict[str, zipfile.ZipInfo]:
        """The files, without folders, by name."""
        return {info.filename: info for info in self.archive.infolist() if not info.is_dir()}

    @functools.cached_property
    def dist_info(self) -> str:
        """The name of the one ``.dist-info`` folder."""
        found = sorted({name.partition("/")[0] for name in self.members if ".dist-info/" in name})
        found = [folder for folder in found if folder.endswith(".dist-info")]
        if len(found) != 1:
            raise _refuse(self.path, f"expected one .dist-info folder, got {found or 'none'}")
        return found[0]

    def read(self, name: str) -> bytes:
        """Return the content of a member of at most 1 GiB; its checksum is verified."""
        info = self._info(name)
        if info.file_size > _MAX_READ:
            raise _refuse(self.path, f"{name}: expected at most {_MAX_READ} bytes, got {info.file_size}")
        with _reading(self.path, name, self._remote_errors):
            return self.archive.read(info)

    def read_text(self, name: str) -> str:
        """Return the content of a UTF-8 member."""
        try:
            return self.read(name).decode("utf-8")
        except UnicodeDecodeError as err:
            raise _refuse(self.path, f"{name}: expected UTF-8 text, got {err}") from err

    @contextlib.contextmanager
    def open_seekable(self, name: str) -> Iterator[BinaryIO]:
        """Give a seekable stream of a member of any size; a large one passes through a temporary file."""
        with tempfile.SpooledTemporaryFile(max_size=_SMALL) as stream:
            for left in reversed(range(_TRIES if self._remote_errors else 1)):
                try:
                    self._copy(name, cast(BinaryIO, stream))
                    break
                except BinaryError:
                    if left == 0:
                        raise
                    stream.seek(0)
                    stream.truncate()
            stream.seek(0)
            yield cast(BinaryIO, stream)

    def _copy(self, name: str, stream: BinaryIO) -> None:
        with _reading(self.path, name, self._remote_errors), self.archive.open(self._info(name)) as member:
            while chunk := member.read(_CHUNK):
                stream.write(chunk)
                if self._on_read is not None:
                    self._on_read(len(chunk))

    @functools.cached_property
    def metadata(self) -> Metadata:
        """The METADATA file ("Core metadata specifications")."""
        name = f"{self.dist_info}/METADATA"
        try:
            return Metadata.from_email(self.read(name))
        except ExceptionGroup as err:
            reasons = "; ".join(str(reason) for reason in err.exceptions)
            raise _refuse(self.path, f"{name}: {reasons}") from err

    @functools.cached_property
    def wheel_metadata(self) -> Message:
        """The WHEEL file."""
        return message_from_bytes(self.read(f"{self.dist_info}/WHEEL"))

    @functools.cached_property
    def binaries(self) -> tuple[str, ...]:
        """The names of the members that are shared objects, by content or by name.

        Of a remote wheel, whose members cost a request each, by name alone.
        """
        found = []
        for name, info in self.members.items():
            if info.file_size == 0:
                continue
            if self._remote_errors:
                if _SHARED_OBJECT.search(name):
                    found.append(name)
                continue
            with _reading(self.path, name), self.archive.open(info) as member:
                head = member.read(20)
            # e_type ET_DYN: executables and cubins lie in wheels too, and are not loaded into Python.
            is_dynamic = is_elf(head) and head[16:18] == b"\x03\x00"
            if is_dynamic or _SHARED_OBJECT.search(name):
                found.append(name)
        return tuple(sorted(found))

    def shared_objects(self) -> Iterator[tuple[SharedObject, BinaryIO]]:
        """Yield each shared object, named as its member, with its stream; the next one closes it."""
        for name in self.binaries:
            with self.open_seekable(name) as stream:
                found = read_shared_object(stream, f"{self.path.name}: {name}")
                yield dataclasses.replace(found, name=name), stream

    def check_record(self) -> list[Violation]:
        """Compare RECORD with the members: every file once, with its hash and size, nothing else."""
        record_name = f"{self.dist_info}/RECORD"
        rows = self._record(record_name)
        violations = []
        for name, times in Counter(row[0] for row in rows).items():
            if times > 1:
                violations.append(Violation("record", name, f"expected one line, got {times}"))
        listed = {row[0]: row[1:] for row in rows}
        signatures = {record_name, f"{record_name}.jws", f"{record_name}.p7s"}
        for name in sorted(listed.keys() - self.members.keys()):
            violations.append(Violation("record", name, "listed, but not in the wheel"))
        for name in sorted(self.members.keys() - listed.keys() - signatures):
            violations.append(Violation("record", name, "in the wheel, but not listed"))
        for name in sorted((self.members.keys() & listed.keys()) - signatures):
            digest, size = self._digest(name)
            expected = list(listed[name])
            if expected != [digest, str(size)]:
                violations.append(
                    Violation("record", name, f"expected {','.join(expected)}, got {digest},{size}")
                )
        return sorted(violations)

    def _record(self, name: str) -> list[tuple[str, str, str]]:
        try:
            rows = [row for row in csv.reader(io.StringIO(self.read_text(name))) if row]
        except csv.Error as err:
            raise _refuse(self.path, f"{name}: expected lines of path,hash,size, got {err}") from err
        if any(len(row) != 3 for row in rows):
            raise _refuse(self.path, f"{name}: expected three fields a line")
        return [(row[0], row[1], row[2]) for row in rows]

    def _digest(self, name: str) -> tuple[str, int]:
        hasher, size = hashlib.sha256(), 0
        with _reading(self.path, name), self.archive.open(self.members[name]) as member:
            while chunk := member.read(_CHUNK):
                hasher.update(chunk)
                size += len(chunk)
        digest = base64.urlsafe_b64encode(hasher.digest()).rstrip(b"=").decode()
        return f"sha256={digest}", size

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            return self.members[name]
        except KeyError as err:
            raise _refuse(self.path, f"expected {name}, got no such member") from err


def _parse_name(path: Path) -> tuple[str, Version, frozenset[Tag]]:
    try:
        name, version, _, tags = parse_wheel_filename(path.name)
    except InvalidWheelFilename as err:
        raise _refuse(path, f"expected name-version-python-abi-platform.whl, got {err}") from err
    return name, version, tags


def _check_members(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    infos = archive.infolist()
    if len(infos) > _MAX_MEMBERS:
        raise _refuse(path, f"expected at most {_MAX_MEMBERS} members, got {len(infos)}")
    for info in infos:
        parts = info.orig_filename.rstrip("/").split("/")
        if (
            any(part in ("", ".", "..") for part in parts)
            or ":" in parts[0]
            or "\\" in info.orig_filename
            or not info.orig_filename.isprintable()
        ):
            raise _refuse(path, f"member {info.orig_filename!r}: expected a path within the wheel")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _refuse(path, f"member {info.filename!r}: expected a file, got a symbolic link")
        if info.flag_bits & 0x1:
            raise _refuse(path, f"member {info.filename!r}: expected plain data, got an encrypted member")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refuse(path, f"member {info.filename!r}: expected stored or deflated data")
    for name, times in Counter(info.filename for info in infos).items():
        if times > 1:
            raise _refuse(path, f"member {name!r}: expected once, got {times} times")
    total = sum(info.file_size for info in infos)
    if total > _MAX_TOTAL or (total > _SMALL and total > _MAX_EXPANSION * size):
        largest = max(infos, key=lambda info: info.file_size)
        raise _refuse(
            path,
            f"expands to {total} bytes, {largest.file_size} of them member {largest.filename!r}: refused as a"
            " zip bomb",
        )


@contextlib.contextmanager
def _reading(path: Path, member: str = "", also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever zipfile and zlib raise on bad data into a BinaryError that names file and member."""
    try:
        yield
    except DAMAGE + also as err:
        where = f"{member}: " if member else ""
        raise _refuse(path, f"{where}{err or type(err).__name__}") from err


def _refuse(path: Path, why: str) -> BinaryError:
    return BinaryError(f"wheel: {path}: {why}\n{_NEXT_STEP}")
