"""Reads the dynamic interface of a shared object: what it needs, what it offers, which glibc it wants.

Follows the System V gABI, chapters 4 (sections, symbols) and 5 (dynamic linking), and the symbol versions
of the LSB Core Specification, section 10.7. Only 64-bit little-endian x86-64 objects are read: the export
tables that they are compared with are of that machine.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from elftools.elf.elffile import ELFFile

from sgl_kernel_rebuild.errors import BinaryError

__all__ = ["SharedObject", "Symbol", "is_elf", "open_elf", "read_shared_object", "version_key"]

_MAGIC = b"\x7fELF"
_MACHO = (b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\xfe\xed\xfa\xcf")
# Corrupt tables make names run through the whole file, once per entry. The longest symbol of torch 2.15.0
# has 2000 characters, and tables share tails only now and then.
_LONGEST_NAME = 1 << 16
_SHARING = 16
_NEXT_STEP = "Take the file from its source again, or leave it out."


@dataclass(frozen=True, order=True)
class Symbol:
    """A dynamic symbol. ``version`` and ``provider`` (a soname) are empty where no version is asked for."""

    name: str
    version: str = ""
    provider: str = ""
    is_weak: bool = False


@dataclass(frozen=True)
class SharedObject:
    """The dynamic interface of one shared object.

    ``versions`` maps each needed soname to the versions asked of it; ``sections`` maps a name to the
    (offset, size) pairs of the sections so named, in bytes.
    """

    name: str
    soname: str = ""
    needed: tuple[str, ...] = ()
    undefined: tuple[Symbol, ...] = ()
    defined: tuple[Symbol, ...] = ()
    versions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sections: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def floor(self, family: str) -> str:
        """Return the highest version of ``family`` (``GLIBC``, ``GLIBCXX``, ``CXXABI``, ``GCC``), or ""."""
        found = [
            version.removeprefix(f"{family}_")
            for versions in self.versions.values()
            for version in versions
            if version.startswith(f"{family}_") and version[len(family) + 1 :][:1].isdigit()
        ]
        return max(found, key=version_key, default="")


def version_key(version: str) -> tuple[int, ...]:
    """Return a dotted version as numbers, for comparison; what is no number counts as 0."""
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split("."))


def is_elf(head: bytes) -> bool:
    """Tell whether a file that starts with ``head`` is in ELF format."""
    return head.startswith(_MAGIC)


def read_shared_object(source: str | os.PathLike[str] | bytes | BinaryIO, name: str = "") -> SharedObject:
    """Return the dynamic interface of the shared object in ``source``: a path, bytes, or a seekable stream.

    ``name`` is what messages and the result call it; a path names itself.

    Raises:
        BinaryError: the file cannot be read, is empty, truncated or corrupt, or is of another format.
    """
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), name or "<bytes>")
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        try:
            with path.open("rb") as stream:
                return _read(stream, name or str(path))
        except OSError as err:
            raise BinaryError(
                f"elf: {path}: cannot be read: {err.strerror or err}\nName a readable file."
            ) from err
    return _read(source, name or "<stream>")


def open_elf(stream: BinaryIO, name: str) -> ELFFile:
    """Return pyelftools' view of ``stream`` after the checks that keep its loops within the file's size."""
    stream.seek(0)
    head = stream.read(64)
    _check_header(head, name)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    try:
        elf = ELFFile(stream)
        section_bytes = elf.num_sections() * elf["e_shentsize"]
        segment_bytes = elf.num_segments() * elf["e_phentsize"]
    except Exception as err:  # pyelftools raises whatever its parser meets in a corrupt file
        raise _corrupt(name, err) from err
    for what, entry, expected, offset, length in (
        ("section headers", elf["e_shentsize"], 64, elf["e_shoff"], section_bytes),
        ("program headers", elf["e_phentsize"], 56, elf["e_phoff"], segment_bytes),
    ):
        if length and entry != expected:
            raise _refuse(name, f"{what}: expected {expected} bytes each, got {entry}: corrupt")
        if offset + length > size:
            raise _refuse(name, f"{what}: expected {offset + length} bytes of file, got {size}: truncated")
    return elf


def _check_header(head: bytes, name: str) -> None:
    def refuse(expected: str, got: str) -> BinaryError:
        return _refuse(name, f"expected {expected}, got {got}")

    if not head:
        raise refuse("an ELF file", "an empty file")
    if head.startswith(_MACHO):
        raise refuse("an ELF file", "a Mach-O file (macOS)")
    if head.startswith(b"MZ"):
        raise refuse("an ELF file", "a PE file (Windows)")
    if not is_elf(head):
        raise refuse("an ELF file", f"a file that starts with {head[:4]!r}")
    if len(head) < 64:
        raise refuse("an ELF header of 64 bytes", f"{len(head)} bytes: truncated")
    if head[4] != 2:
        raise refuse("a 64-bit object", "a 32-bit object" if head[4] == 1 else f"ELF class {head[4]}")
    if head[5] != 1:
        raise refuse("a little-endian object", "another byte order")


def _read(stream: BinaryIO, name: str) -> SharedObject:
    elf = open_elf(stream, name)
    if elf["e_machine"] != "EM_X86_64":
        raise _refuse(name, f"expected an x86-64 object, got {_describe(elf['e_machine'])}")
    if elf["e_type"] != "ET_DYN":
        raise _refuse(name, f"expected a shared object, got {_describe(elf['e_type'])}")
    try:
        return _Reader(elf, stream, name).read()
    except BinaryError:
        raise
    except Exception as err:  # as in open_elf
        raise _corrupt(name, err) from err


def _describe(value: object) -> str:
    names = {
        "EM_AARCH64": "AArch64",
        "EM_ARM": "ARM",
        "EM_386": "x86",
        "EM_CUDA": "GPU machine code",
        "ET_REL": "a relocatable object",
        "ET_EXEC": "an executable",
        "ET_CORE": "a core dump",
    }
    return names.get(str(value), str(value))


def _corrupt(name: str, err: Exception) -> BinaryError:
    return _refuse(name, f"corrupt: {type(err).__name__}: {err}")


def _refuse(name: str, why: str) -> BinaryError:
    return BinaryError(f"elf: {name}: {why}\n{_NEXT_STEP}")


class _Reader:
    """One pass over one file; every loop is bounded by the size of what it walks."""

    def __init__(self, elf: ELFFile, stream: BinaryIO, name: str) -> None:
        self.elf = elf
        self.stream = stream
        self.name = name
        self.size = stream.seek(0, os.SEEK_END)
        self.name_bytes = 0
        self.by_type: dict[str, Any] = {}
        self.sections: dict[str, list[tuple[int, int]]] = {}
        for section in elf.iter_sections():
            self._count_name(section.name)
            if section["sh_type"] != "SHT_NOBITS":
                self.sections.setdefault(section.name, []).append((section["sh_offset"], section["sh_size"]))
            self.by_type.setdefault(str(section["sh_type"]), section)

    def read(self) -> SharedObject:
        soname, needed, has_dynamic = self._dynamic_tags()
        if has_dynamic and "SHT_DYNSYM" not in self.by_type:
            raise self._refuse("expected a .dynsym section, got none: stripped of its section headers")
        by_index, versions = self._needed_versions()
        undefined, defined = self._symbols(by_index)
        return SharedObject(
            name=self.name,
            soname=soname,
            needed=needed,
            undefined=undefined,
            defined=defined,
            versions=versions,
            sections={name: tuple(spans) for name, spans in self.sections.items()},
        )

    def _dynamic_tags(self) -> tuple[str, tuple[str, ...], bool]:
        soname, needed, has_dynamic = "", [], False
        for segment in self.elf.iter_segments("PT_DYNAMIC"):
            has_dynamic = True
            tags: Any = segment  # a DynamicSegment, which pyelftools does not say
            for tag in islice(tags.iter_tags(), segment["p_filesz"] // 16 + 1):
                if tag.entry.d_tag == "DT_NEEDED":
                    needed.append(self._count_name(tag.needed))
                elif tag.entry.d_tag == "DT_SONAME":
                    soname = self._count_name(tag.soname)
            break
        return soname, tuple(needed), has_dynamic

    def _bytes(self, section: Any) -> bytes:
        offset, size = section["sh_offset"], section["sh_size"]
        if offset + size > self.size:
            raise self._refuse(
                f"section {section.name}: expected {offset + size} bytes of file, got {self.size}: truncated"
            )
        self.stream.seek(offset)
        return self.stream.read(size)

    def _needed_versions(self) -> tuple[dict[int, tuple[str, str]], dict[str, tuple[str, ...]]]:
        """Return version index -> (soname, version), and soname -> versions."""
        section = self.by_type.get("SHT_GNU_verneed")
        by_index: dict[int, tuple[str, str]] = {}
        versions: dict[str, tuple[str, ...]] = {}
        if section is None:
            return by_index, versions
        budget = len(self._bytes(section)) // 16 + 1  # both records have 16 bytes
        for library, auxiliaries in section.iter_versions():
            soname = self._count_name(library.name)
            for auxiliary in auxiliaries:
                budget -= 1
                if budget < 0:
                    raise self._refuse("version records form a loop: corrupt")
                version = self._count_name(auxiliary.name)
                by_index[auxiliary["vna_other"] & 0x7FFF] = (soname, version)
                versions[soname] = (*versions.get(soname, ()), version)
            budget -= 1
        return by_index, versions

    def _symbols(self, by_index: dict[int, tuple[str, str]]) -> tuple[tuple[Symbol, ...], tuple[Symbol, ...]]:
        section = self.by_type.get("SHT_DYNSYM")
        if section is None:
            return (), ()
        table = self._bytes(section)
        names = self._bytes(self.elf.get_section(section["sh_link"]))
        # The symbols' version indices, one 16-bit word each (LSB 10.7.2); absent, nothing is versioned.
        versym = self.by_type.get("SHT_GNU_versym")
        indices = memoryview(self._bytes(versym)[: len(table) // 24 * 2]).cast("H") if versym else ()
        undefined: list[Symbol] = []
        defined: list[Symbol] = []
        # Elf64_Sym: st_name, st_info, st_other, st_shndx, st_value, st_size. Read directly: object files of
        # torch's size have 100,000 of them.
        for position, (offset, info, other, shndx, _, _) in enumerate(
            struct.iter_unpack("<IBBHQQ", table[: len(table) // 24 * 24])
        ):
            binding, visibility = info >> 4, other & 3
            if binding == 0 or offset == 0:
                continue
            name = self._name(names, offset)
            index = indices[position] & 0x7FFF if position < len(indices) else 0
            provider, version = by_index.get(index, ("", ""))
            if shndx == 0:
                undefined.append(Symbol(name, version, provider, is_weak=binding == 2))
            elif visibility in (0, 3):  # default and protected: the ones others can bind to
                defined.append(Symbol(name, is_weak=binding == 2))
        return tuple(sorted(undefined)), tuple(sorted(defined))

    def _name(self, names: bytes, offset: int) -> str:
        end = names.find(b"\0", offset, offset + _LONGEST_NAME)
        if end < 0:
            raise self._refuse(f"symbol name at {offset}: expected an end, got none: corrupt")
        return self._count_name(names[offset:end].decode("utf-8", "backslashreplace"))

    def _count_name(self, name: str) -> str:
        self.name_bytes += len(name)
        if len(name) > _LONGEST_NAME or self.name_bytes > _SHARING * self.size:
            raise self._refuse("names run into each other: corrupt")
        return name

    def _refuse(self, why: str) -> BinaryError:
        return _refuse(self.name, why)
