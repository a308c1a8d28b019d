"""Reads what each kernel of a cubin takes: registers, shared memory, stack, local-memory instructions.

A cubin is an ELF file of machine EM_CUDA. Its attributes are in ``.nv.info``: records of format u8,
attribute u8, then a u16 that is the value or, in format 4, the size of the data that follows. A test compares
what this reader finds with what ``ptxas -v`` says; ``cuobjdump --dump-resource-usage`` agrees too.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sgl_kernel_rebuild.errors import BinaryError

from ._elffile import open_elf

__all__ = ["Kernel", "read_kernels"]

_SIZED = 4
_REGISTER_COUNT = 0x2F
_FRAME_SIZE = 0x11
# Where a cubin has a section .nv.shared.reserved.0, that of each kernel counts what the system reserves;
# cuobjdump shows it as it is, ptxas without.
_RESERVED_SHARED = 1024
_ENTRY_POINT = 0x10  # st_other of a __global__ function
_FUNCTION = "STT_FUNC"
# Since Volta an instruction has 16 bytes and its opcode is in the lowest 12 bits; so on sm_70 to sm_120.
_INSTRUCTION = 16
_LOAD_LOCAL = 0x983
_STORE_LOCAL = 0x387
_COPY_TO_UNIFORM = 0xDAE  # LDGSTS, with a uniform register in its target's address
_COUNTED = (_LOAD_LOCAL, _STORE_LOCAL, _COPY_TO_UNIFORM)
# Corrupt tables make names run through the whole file, once per entry.
_LONGEST_NAME = 1 << 16
_SHARING = 16
_NEXT_STEP = "Build the file again, or take it from its source again."


@dataclass(frozen=True, order=True)
class Kernel:
    """One entry point on one architecture; sizes in bytes.

    ``shared`` is static shared memory, without the kilobyte that the system reserves from sm_90 on.
    ``stack`` is the frame per thread: local arrays and spilled registers. ``local_loads`` and
    ``local_stores`` count the instructions that touch it: none means no spills. ``uniform_copies`` counts
    asynchronous copies whose target's address has a part in a uniform register: of one with a cache policy,
    ptxas 12.8 allocates no register for either, and the GPU takes it for an illegal instruction.
    """

    name: str
    registers: int
    shared: int
    stack: int
    local_loads: int
    local_stores: int
    uniform_copies: int
    code: int

    def to_json(self) -> dict[str, Any]:
        """Return everything but the name as plain JSON types."""
        data = asdict(self)
        del data["name"]
        return data


def read_kernels(cubin: bytes, name: str) -> tuple[Kernel, ...]:
    """Return the kernels of a cubin, sorted by name; ``name`` is what messages call it.

    Raises:
        BinaryError: the data is no cubin, or corrupt.
    """
    elf = open_elf(io.BytesIO(cubin), name)
    if elf["e_machine"] != "EM_CUDA":
        raise BinaryError(f"cubin: {name}: expected GPU machine code, got {elf['e_machine']}\n{_NEXT_STEP}")
    try:
        return _kernels(elf, len(cubin), name)
    except BinaryError:
        raise
    except Exception as err:  # pyelftools raises whatever its parser meets in a corrupt file
        raise BinaryError(f"cubin: {name}: corrupt: {type(err).__name__}: {err}\n{_NEXT_STEP}") from err


def _kernels(elf: Any, size: int, name: str) -> tuple[Kernel, ...]:
    sections: dict[str, Any] = {}
    for section in elf.iter_sections():
        is_in_file = section["sh_type"] == "SHT_NOBITS" or section["sh_offset"] + section["sh_size"] <= size
        if not is_in_file or len(section.name) > _LONGEST_NAME:
            raise BinaryError(f"cubin: {name}: section {section.name[:80]}: corrupt\n{_NEXT_STEP}")
        sections.setdefault(section.name, section)
    symbols = sections.get(".symtab")
    if symbols is None:
        return ()

    def raw(section: Any) -> bytes:  # data() of pyelftools would also decompress
        if section is None or section["sh_type"] == "SHT_NOBITS":
            return b""
        elf.stream.seek(section["sh_offset"])
        return bytes(elf.stream.read(section["sh_size"]))

    registers: dict[int, int] = {}
    frames: dict[int, int] = {}
    for attribute, data in _attributes(raw(sections.get(".nv.info"))):
        if len(data) == 8 and attribute in (_REGISTER_COUNT, _FRAME_SIZE):
            symbol, value = struct.unpack("<II", data)
            (registers if attribute == _REGISTER_COUNT else frames)[symbol] = value
    entries: dict[str, int] = {}
    of_callees = [0] * len(_COUNTED)  # functions that were not inlined
    name_bytes = 0
    for index, symbol in enumerate(symbols.iter_symbols()):
        name_bytes += len(symbol.name)
        if name_bytes > _SHARING * size:
            raise BinaryError(f"cubin: {name}: names run into each other: corrupt\n{_NEXT_STEP}")
        if symbol["st_info"]["type"] != _FUNCTION or f".text.{symbol.name}" not in sections:
            continue
        if _is_entry(symbols, index):
            entries[symbol.name] = index
        else:
            counts = _count(raw(sections[f".text.{symbol.name}"]))
            of_callees = [x + y for x, y in zip(of_callees, counts, strict=True)]
    reserved = _RESERVED_SHARED if ".nv.shared.reserved.0" in sections else 0
    kernels = []
    for kernel, index in entries.items():
        code = raw(sections[f".text.{kernel}"])
        loads, stores, copies = (x + y for x, y in zip(_count(code), of_callees, strict=True))
        shared = sections.get(f".nv.shared.{kernel}")
        kernels.append(
            Kernel(
                name=kernel,
                registers=registers.get(index, 0),
                shared=max(shared["sh_size"] - reserved, 0) if shared is not None else 0,
                stack=frames.get(index, 0),
                local_loads=loads,
                local_stores=stores,
                uniform_copies=copies,
                code=len(code),
            )
        )
    return tuple(sorted(kernels))


def _is_entry(symbols: Any, index: int) -> bool:
    # pyelftools splits st_other into fields that know nothing of bit 4; the byte is the sixth of Elf64_Sym.
    symbols.stream.seek(symbols["sh_offset"] + index * symbols["sh_entsize"] + 5)
    return bool(symbols.stream.read(1)[0] & _ENTRY_POINT)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(data):
        form, attribute, value = struct.unpack_from("<BBH", data, position)
        position += 4
        if form == _SIZED:
            yield attribute, data[position : position + value]
            position += value


def _count(code: bytes) -> list[int]:
    """How many instructions there are of each of ``_COUNTED``."""
    counts = [0] * len(_COUNTED)
    for low, _ in struct.iter_unpack("<QQ", code[: len(code) // _INSTRUCTION * _INSTRUCTION]):
        if low & 0xFFF in _COUNTED:
            counts[_COUNTED.index(low & 0xFFF)] += 1
    return counts
