"""Fat binaries and cubins: what is in them agrees with what the compiler said, and damage is told."""

from __future__ import annotations

import ctypes
import hashlib
import io
import struct

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sgl_kernel_rebuild.abi._cubin import read_kernels
from sgl_kernel_rebuild.abi._elffile import read_shared_object
from sgl_kernel_rebuild.abi._fatbin import CodeObject, iter_code, read_payload
from sgl_kernel_rebuild.errors import BinaryError
from sgl_kernel_rebuild.toolchain import _wheels

TARGETS = ["sm_80", "sm_86", "sm_90a", "sm_120", "compute_120"]


def codes(data: bytes, name: str = "x.fatbin") -> list[CodeObject]:
    return list(iter_code(io.BytesIO(data), {".nv_fatbin": ((0, len(data)),)}, name))


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def entry(
    kind=2, arch=80, payload=b"12345678", flags=0x11, packed=0, size=0, header=64, stored=None
) -> bytes:
    stored = len(payload) if stored is None else stored
    return (
        struct.pack(
            "<HHIQIIHHIIIQQQ", kind, 0x101, header, stored, packed, 0, 8, 1, arch, 0, 0, flags, 0, size
        )
        + payload
    )


def test_lists_the_code_of_every_target(device_code):
    found = codes(device_code.fatbin)
    assert [code.target for code in found] == TARGETS
    assert {code.kind for code in found} == {"cubin", "ptx"}
    assert {code.container for code in found} == {0}
    assert {code.name for code in found} == {"demo"}


def test_payloads_are_what_the_compiler_made(device_code):
    stream = io.BytesIO(device_code.fatbin)
    digests = {
        code.arch: hashlib.sha256(read_payload(stream, code, "x")).hexdigest()
        for code in codes(device_code.fatbin)
        if code.kind == "cubin"
    }
    assert digests == {arch: hashlib.sha256(data).hexdigest() for arch, data in device_code.cubins.items()}


def test_finds_the_section_of_a_library(library, device_code):
    found = read_shared_object(library, "lib.so")
    assert [code.target for code in iter_code(io.BytesIO(library), found.sections, "lib.so")] == TARGETS


def pack_compressed(device_code, options: list[bytes]) -> bytes:
    """Return the cubins packed by nvFatbin itself, with compression."""
    library = ctypes.CDLL(_wheels.library(_wheels.NVFATBIN, r"libnvfatbin\.so\.\d+"))
    handle = ctypes.c_void_p()
    array = (ctypes.c_char_p * len(options))(*options)
    assert library.nvFatbinCreate(ctypes.byref(handle), array, ctypes.c_size_t(len(options))) == 0
    for arch, data in device_code.cubins.items():
        size = ctypes.c_size_t(len(data))
        assert library.nvFatbinAddCubin(handle, data, size, arch.encode(), b"demo") == 0
    size = ctypes.c_size_t()
    assert library.nvFatbinSize(handle, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert library.nvFatbinGet(handle, buffer) == 0
    library.nvFatbinDestroy(ctypes.byref(handle))
    return buffer.raw


def test_unpacks_lz4(device_code):
    data = pack_compressed(device_code, [b"-compress-all"])
    stream = io.BytesIO(data)
    found = codes(data)
    assert {code.compression for code in found} == {"lz4"}
    assert {code.arch: read_payload(stream, code, "x") for code in found} == device_code.cubins


def test_names_zstd_and_unpacks_it_where_python_can(device_code):
    data = pack_compressed(device_code, [b"-compress-mode=size"])
    stream = io.BytesIO(data)
    for code in codes(data):
        assert code.compression == "zstd"
        message = refusal(read_payload, stream, code, "x")
        assert "pip install backports.zstd" in message or not message
        assert message or read_payload(stream, code, "x") == device_code.cubins[code.arch]


def test_kernels_take_what_ptxas_says(device_code):
    for arch, cubin in device_code.cubins.items():
        report = device_code.reports[f"cubin {arch}"]["kernels"]
        kernels = {kernel.name: kernel for kernel in read_kernels(cubin, arch)}
        assert kernels.keys() == report.keys() == {"scale_f32", "scale_f16", "add_f32"}
        for name, kernel in kernels.items():
            said = report[name]
            assert kernel.registers == said["registers"], (arch, name)
            assert kernel.shared == said["shared"], (arch, name)
            assert kernel.stack == said["stack"], (arch, name)
            assert bool(kernel.local_stores) == bool(said["spill_stores"]), (arch, name)
            assert bool(kernel.local_loads) == bool(said["spill_loads"]), (arch, name)
        assert kernels["scale_f32"].shared == 256


def test_counts_local_memory_instructions(device_code):
    kernels = {kernel.name: kernel for kernel in read_kernels(device_code.cubins["86"], "86")}
    spilled = device_code.reports["cubin 86"]["kernels"]["add_f32"]
    assert spilled["spill_stores"] > 0
    assert kernels["add_f32"].stack > 0
    assert kernels["add_f32"].local_stores > 0
    assert (kernels["scale_f32"].local_loads, kernels["scale_f32"].local_stores) == (0, 0)


def test_counts_copies_to_uniform_addresses(device_code):
    cubin = bytearray(device_code.cubins["86"])
    section = ELFFile(io.BytesIO(cubin)).get_section_by_name(".text.scale_f16")
    assert {kernel.uniform_copies for kernel in read_kernels(cubin, "86")} == {0}
    # The first instruction of the kernel as ptxas has it: LDGSTS.E.BYPASS.128 [R25+UR0], desc[UR1][R16.64]
    struct.pack_into("<Q", cubin, section["sh_offset"], 0x0000000010197DAE)
    found = {kernel.name: kernel.uniform_copies for kernel in read_kernels(bytes(cubin), "86")}
    assert found == {"add_f32": 0, "scale_f16": 1, "scale_f32": 0}


@pytest.mark.parametrize(("flags", "target"), [(0x11, "sm_90"), (0x100011, "sm_90a"), (0x1200011, "sm_90f")])
def test_architecture_suffixes(flags, target):
    (code,) = codes(container(entry(arch=90, flags=flags)))
    assert code.target == target


def test_containers_may_be_padded_and_many():
    data = (
        b"\0" * 8
        + container(entry(arch=80))
        + b"\0" * 24
        + container(entry(arch=90), entry(kind=8))
        + b"\0" * 5
    )
    found = codes(data)
    assert [(code.container, code.kind, code.arch) for code in found] == [
        (0, "cubin", "80"),
        (1, "cubin", "90"),
        (1, "kind8", "80"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (container(entry())[:-4], r"container at 0: expected 16\+72 bytes, section has 84"),
        (container(entry(header=63)), r"entry at 16: expected 63\+8 bytes"),
        (container(entry(stored=800)), r"entry at 16: expected 64\+800 bytes, container has 72"),
        (container(entry(flags=0x2011, packed=9)), r"entry at 16"),
    ],
)
def test_refuses_containers_that_do_not_hold(data, message):
    with pytest.raises(BinaryError, match=rf"fatbin: x\.fatbin: {message}"):
        codes(data)


def test_refuses_a_section_beyond_the_file():
    with pytest.raises(
        BinaryError, match=r"section \.nv_fatbin: expected 100 bytes of file, got 10: truncated"
    ):
        list(iter_code(io.BytesIO(b"\0" * 10), {".nv_fatbin": ((0, 100),)}, "x"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            entry(flags=0x2011, packed=8, size=64, payload=b"\x1f" + b"a" * 7),
            "LZ4 block: corrupt|index out of range",
        ),
        (
            entry(flags=0x2011, packed=8, size=4, payload=b"\x70" + b"a" * 7),
            "expected 4 bytes, got 7: corrupt",
        ),
        (entry(flags=0x4011, packed=8, size=64), "unknown compression 0x4000"),
        (entry(flags=0x2011, packed=8, size=1 << 40), "expected at most"),
    ],
)
def test_refuses_payloads_that_do_not_unpack(data, message):
    whole = container(data)
    (code,) = codes(whole)
    with pytest.raises(BinaryError, match=message):
        read_payload(io.BytesIO(whole), code, "x.fatbin")


def test_refuses_cubins_that_are_none(library):
    with pytest.raises(BinaryError, match="cubin: host: expected GPU machine code, got EM_X86_64"):
        read_kernels(library, "host")
    with pytest.raises(BinaryError, match="expected an ELF file"):
        read_kernels(b"nonsense" * 10, "none")


def refusal(action, *arguments):
    """Return the message of the BinaryError that ``action`` ends with, or "" if it ends well."""
    try:
        action(*arguments)
    except BinaryError as err:
        return str(err)
    return ""


def read_everything(data):
    for code in codes(data, "damaged"):
        read_payload(io.BytesIO(data), code, "damaged")


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.data())
def test_damaged_fat_binaries_give_a_result_or_a_binary_error(device_code, data):
    damaged = bytearray(device_code.fatbin)
    starts = [0, *(code.offset - 80 for code in codes(device_code.fatbin))]
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.sampled_from(starts)) + data.draw(st.integers(0, 79))] = data.draw(
            st.integers(0, 255)
        )
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    message = refusal(read_everything, bytes(damaged[:cut]))
    assert "damaged" in message or not message


@FUZZ
@given(st.data())
def test_damaged_cubins_give_a_result_or_a_binary_error(device_code, data):
    cubin = device_code.cubins[data.draw(st.sampled_from(["80", "120"]))]
    damaged = bytearray(cubin)
    for _ in range(data.draw(st.integers(1, 8))):
        low, high = data.draw(st.sampled_from([(0, 64), (64, 4096), (len(cubin) - 3600, len(cubin))]))
        damaged[data.draw(st.integers(max(low, 0), min(high, len(cubin)) - 1))] = data.draw(
            st.integers(0, 255)
        )
    message = refusal(read_kernels, bytes(damaged), "damaged")
    assert "damaged" in message or not message


@FUZZ
@given(st.binary(max_size=200))
def test_noise_in_a_container_gives_a_result_or_a_binary_error(noise):
    message = refusal(codes, container(noise), "noise")
    assert "noise" in message or not message
