"""Reads CUDA fat binaries: which machine code and PTX a shared object carries.

The container is not documented by NVIDIA; this is what files made by nvFatbin 12.8, ``fatbinary`` 12.8 to
13.0 and nvcc 12.x show, and what ``cuobjdump`` says of them (all little endian):

* container: magic u32, version u16, header size u16 (16), payload size u64; containers follow one another
  in the sections ``.nv_fatbin`` and ``__nv_relfatbin``, padded with zeros to 8 bytes;
* entry: kind u16 (1 PTX, 2 ELF), version u16, header size u32, stored size u64 (padded to 8), compressed
  size u32, options offset u32, minor u16, major u16, architecture u32, name offset u32, name length u32,
  flags u64, zero u64, size before compression u64; then name and options up to the header size.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from sgl_kernel_rebuild.errors import BinaryError

__all__ = ["CodeObject", "iter_code", "read_payload"]

_MAGIC = (0xBA55ED50).to_bytes(4, "little")
_CONTAINER = struct.Struct("<4sHHQ")
_ENTRY = struct.Struct("<HHIQIIHHIIIQQQ")
_SECTIONS = (".nv_fatbin", "__nv_relfatbin")
_KINDS = {1: "ptx", 2: "cubin"}
_PREFIXES = {"ptx": "compute", "cubin": "sm"}
_COMPRESSIONS = {0x2000: "lz4", 0x8000: "zstd"}
_COMPRESSED = 0xF000
_ARCH_SPECIFIC = 0x100000  # sm_90a
_FAMILY_SPECIFIC = 0x200000  # sm_100f
_CHUNK = 1 << 20
# The largest cubin of the published wheels has 60 MB.
_LARGEST_PAYLOAD = 1 << 29
_NEXT_STEP = "Build the file again, or take it from its source again."


@dataclass(frozen=True, order=True)
class CodeObject:
    """One entry of a fat binary; ``offset`` and ``stored_size`` say where in the file its payload lies.

    ``kind`` is ``cubin``, ``ptx`` or, for what is neither, ``kind<number>``; ``arch`` reads ``90a``.
    ``container`` counts the containers of the file: the entries of one are one translation unit.
    """

    container: int
    kind: str
    arch: str
    name: str
    compression: str
    offset: int
    stored_size: int
    size: int

    @property
    def target(self) -> str:
        """``sm_90a`` for machine code, ``compute_120`` for PTX, ``kind8_90`` for anything else."""
        return f"{_PREFIXES.get(self.kind, self.kind)}_{self.arch}"


def iter_code(
    stream: BinaryIO, sections: Mapping[str, Sequence[tuple[int, int]]], name: str
) -> Iterator[CodeObject]:
    """Yield the entries of every fat binary in ``stream``, in file order, without reading their payloads.

    ``sections`` says where the file's sections lie, as `SharedObject.sections` does; ``name`` is what
    messages call the file.

    Raises:
        BinaryError: a container or an entry does not fit the file.
    """
    size = stream.seek(0, os.SEEK_END)
    index = 0
    for section in _SECTIONS:
        for offset, length in sections.get(section, ()):
            if offset + length > size:
                raise _refuse(
                    name,
                    f"section {section}: expected {offset + length} bytes of file, got {size}: truncated",
                )
            position, end = offset, offset + length
            while (start := _find_magic(stream, position, end)) >= 0:
                stream.seek(start)
                _, _, header, payload = _CONTAINER.unpack(stream.read(_CONTAINER.size))
                if header != _CONTAINER.size or start + header + payload > end:
                    raise _refuse(
                        name,
                        f"container at {start}: expected {header}+{payload} bytes, section has {end - start}",
                    )
                position = start + header + payload
                yield from _entries(stream, name, index, start + header, position)
                index += 1


def read_payload(stream: BinaryIO, code: CodeObject, name: str) -> bytes:
    """Return the payload of ``code``, decompressed; padding at the end may remain.

    Raises:
        BinaryError: the payload is larger than any real one, corrupt, or compressed in an unknown way.
    """
    if max(code.size, code.stored_size) > _LARGEST_PAYLOAD:
        raise _refuse(name, f"{code.target}: expected at most {_LARGEST_PAYLOAD} bytes, got {code.size}")
    stream.seek(code.offset)
    stored = stream.read(code.stored_size)
    if code.compression == "":
        return stored
    try:
        if code.compression == "lz4":
            data = _unpack_lz4(stored, code.size)
        elif code.compression == "zstd":
            data = _unpack_zstd(stored, code.size)
        else:
            raise ValueError(f"unknown compression {code.compression}")
    except (ValueError, IndexError, EOFError) as err:
        raise _refuse(name, f"{code.target}: {err}") from err
    if len(data) != code.size:
        raise _refuse(name, f"{code.target}: expected {code.size} bytes, got {len(data)}: corrupt")
    return data


def _refuse(name: str, why: str) -> BinaryError:
    return BinaryError(f"fatbin: {name}: {why}\n{_NEXT_STEP}")


def _entries(stream: BinaryIO, name: str, container: int, position: int, end: int) -> Iterator[CodeObject]:
    while position + _ENTRY.size <= end:
        stream.seek(position)
        fields = _ENTRY.unpack(stream.read(_ENTRY.size))
        kind, _, header, stored, packed, _, _, _, arch, name_offset, name_length, flags, _, size = fields
        if header < _ENTRY.size or position + header + stored > end or packed > stored:
            raise _refuse(
                name,
                f"entry at {position}: expected {header}+{stored} bytes, container has {end - position}",
            )
        identifier = b""
        if name_offset and name_offset + name_length <= header:
            stream.seek(position + name_offset)
            identifier = stream.read(name_length)
        suffix = "a" if flags & _ARCH_SPECIFIC else "f" if flags & _FAMILY_SPECIFIC else ""
        compressed = flags & _COMPRESSED
        yield CodeObject(
            container=container,
            kind=_KINDS.get(kind, f"kind{kind}"),
            arch=f"{arch}{suffix}",
            name=identifier.decode("utf-8", "backslashreplace"),
            compression=_COMPRESSIONS.get(compressed, f"{compressed:#x}") if compressed else "",
            offset=position + header,
            stored_size=packed or stored,
            size=size if compressed else stored,
        )
        position += header + stored


def _find_magic(stream: BinaryIO, position: int, end: int) -> int:
    while position + _CONTAINER.size <= end:
        stream.seek(position)
        chunk = stream.read(min(_CHUNK, end - position))
        found = chunk.find(_MAGIC)
        if found >= 0:
            return position + found if position + found + _CONTAINER.size <= end else -1
        if len(chunk) < len(_MAGIC):
            break
        position += len(chunk) - len(_MAGIC) + 1
    return -1


def _unpack_lz4(data: bytes, size: int) -> bytes:
    """Return the content of an LZ4 block (LZ4 Block Format Description, 2015 and later)."""
    out = bytearray()
    position = 0

    def length(nibble: int) -> int:
        nonlocal position
        total = nibble
        if nibble == 15:
            while True:
                byte = data[position]
                position += 1
                total += byte
                if byte != 255:
                    break
        return total

    while position < len(data):
        token = data[position]
        position += 1
        literals = length(token >> 4)
        out += data[position : position + literals]
        position += literals
        if position >= len(data):
            break
        distance = data[position] | data[position + 1] << 8
        position += 2
        count = length(token & 15) + 4
        if not 0 < distance <= len(out) or len(out) + count > size:
            raise ValueError("LZ4 block: corrupt")
        start = len(out) - distance
        if distance >= count:
            out += out[start : start + count]
        else:  # the match overlaps what it makes: its first bytes repeat
            out += (bytes(out[start:]) * (count // distance + 1))[:count]
    return bytes(out)


def _unpack_zstd(data: bytes, size: int) -> bytes:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14 and newer
    except ImportError:
        try:
            from backports import zstd  # type: ignore[import-not-found,attr-defined,unused-ignore,no-redef]
        except ImportError as err:
            raise ValueError("zstd: not in this Python; pip install backports.zstd") from err
    unpacker = zstd.ZstdDecompressor()
    try:
        return bytes(unpacker.decompress(data, max_length=size + 1))
    except zstd.ZstdError as err:
        raise ValueError(f"zstd frame: {err}") from err
