"""Shared objects as the loader sees them, and files that are none."""

from __future__ import annotations

import io
import struct
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sgl_kernel_rebuild.abi._elffile import Symbol, read_shared_object, version_key
from sgl_kernel_rebuild.errors import BinaryError

SOURCE = r"""
#include <string.h>
extern "C" int other_library_function(int);
extern "C" __attribute__((weak)) int maybe_there();
extern "C" __attribute__((visibility("default"))) int offered(char* p, const char* q, unsigned long n) {
  memcpy(p, q, n);
  return other_library_function(1) + (maybe_there ? maybe_there() : 0);
}
extern "C" int hidden() { return 1; }
"""


@pytest.fixture(scope="module")
def demo(compile_so):
    return compile_so(SOURCE, "-O2", soname="libdemo.so.3")


def test_reads_needs_and_offers(demo):
    found = read_shared_object(demo)
    assert found.name == str(demo)
    assert found.soname == "libdemo.so.3"
    assert "libc.so.6" in found.needed
    by_name = {symbol.name: symbol for symbol in found.undefined}
    assert by_name["other_library_function"] == Symbol("other_library_function")
    assert by_name["maybe_there"].is_weak
    assert by_name["memcpy"].provider == "libc.so.6"
    assert by_name["memcpy"].version.startswith("GLIBC_2.")
    names = {symbol.name for symbol in found.defined}
    assert "offered" in names
    assert "hidden" not in names


def test_floor_is_the_highest_version_asked_for(demo):
    found = read_shared_object(demo)
    asked = [version for versions in found.versions.values() for version in versions if "GLIBC_2" in version]
    assert f"GLIBC_{found.floor('GLIBC')}" == max(asked, key=lambda version: version_key(version[6:]))
    assert found.floor("GLIBCXX") == ""


def test_version_key_compares_numbers():
    assert version_key("2.4") < version_key("2.14") < version_key("3")


def test_reads_bytes_and_streams_alike(demo):
    data = demo.read_bytes()
    by_bytes = read_shared_object(data, "a name")
    assert by_bytes.name == "a name"
    assert read_shared_object(io.BytesIO(data), "a name") == by_bytes


def test_sections_say_where_their_bytes_lie(compile_so):
    path = compile_so('asm(".section .marked,\\"a\\"\\n.ascii \\"here I am\\"\\n.previous");')
    data = path.read_bytes()
    ((offset, size),) = read_shared_object(data).sections[".marked"]
    assert data[offset : offset + size] == b"here I am"


def header(data: bytes, **changes: int) -> bytes:
    """Return the file with fields of its ELF header replaced."""
    places = {
        "class": (4, "B"),
        "order": (5, "B"),
        "type": (16, "H"),
        "machine": (18, "H"),
        "shentsize": (58, "H"),
    }
    changed = bytearray(data)
    for field, value in changes.items():
        offset, form = places[field]
        struct.pack_into("<" + form, changed, offset, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: b"", "expected an ELF file, got an empty file"),
        (lambda data: b"#!/bin/sh\n" * 10, r"expected an ELF file, got a file that starts with b'#!/b'"),
        (lambda data: b"\xcf\xfa\xed\xfe" + data[4:], "got a Mach-O file"),
        (lambda data: b"MZ" + data[2:], "got a PE file"),
        (lambda data: data[:40], "ELF header of 64 bytes, got 40 bytes: truncated"),
        (
            lambda data: data[: len(data) // 2],
            "section headers: expected .* bytes of file, got .*: truncated",
        ),
        (lambda data: header(data, **{"class": 1}), "expected a 64-bit object, got a 32-bit object"),
        (lambda data: header(data, order=2), "expected a little-endian object"),
        (lambda data: header(data, machine=183), "expected an x86-64 object, got AArch64"),
        (lambda data: header(data, machine=40), "expected an x86-64 object, got ARM"),
        (lambda data: header(data, type=1), "expected a shared object, got a relocatable object"),
        (lambda data: header(data, type=2), "expected a shared object, got an executable"),
        (lambda data: header(data, shentsize=63), "section headers: expected 64 bytes each, got 63"),
    ],
)
def test_refuses_by_name_what_it_cannot_read(demo, tmp_path, make, message):
    path = tmp_path / "bad.so"
    path.write_bytes(make(demo.read_bytes()))
    with pytest.raises(BinaryError, match=message) as caught:
        read_shared_object(path)
    assert str(caught.value).startswith(f"elf: {path}: ")
    assert len(str(caught.value).splitlines()) == 2  # the second line says what to do next


def test_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BinaryError, match=r"gone\.so: cannot be read"):
        read_shared_object(tmp_path / "gone.so")


def test_refuses_an_object_without_section_headers(demo):
    data = bytearray(demo.read_bytes())
    struct.pack_into("<QHHH", data, 40, 0, *struct.unpack_from("<H", data, 48), 64, 56)
    struct.pack_into("<Q", data, 40, 0)  # e_shoff
    struct.pack_into("<HHH", data, 58, 64, 0, 0)  # e_shentsize, e_shnum, e_shstrndx
    with pytest.raises(BinaryError):
        read_shared_object(bytes(data), "stripped.so")


def test_names_that_run_into_each_other_are_refused_quickly(demo):
    # Every string of the file made endless: reading each symbol's name would read the whole table.
    found = read_shared_object(demo)
    data = bytearray(demo.read_bytes())
    ((offset, size),) = found.sections[".dynstr"]
    data[offset : offset + size] = b"x" * size
    with pytest.raises(BinaryError, match="corrupt"):
        read_shared_object(bytes(data), "endless.so")


def test_reads_what_readelf_reads(demo):
    text = subprocess.run(
        ["nm", "-D", "--undefined-only", str(demo)], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[1].partition("@")[0] for line in text.splitlines()}
    assert {symbol.name for symbol in read_shared_object(demo).undefined} == names


def refusal(action, *arguments):
    """Return the message of the BinaryError that ``action`` ends with, or "" if it ends well."""
    try:
        action(*arguments)
    except BinaryError as err:
        return str(err)
    return ""


@pytest.fixture(scope="module")
def small(compile_so):
    path = compile_so(
        'extern "C" int f(); extern "C" int g() { return f(); }', "-nostdlib", "-s", "-Wl,-z,noseparate-code"
    )
    return path.read_bytes()


# The first kilobyte holds the headers, the last the section table; the loader's tables lie between.
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_give_a_result_or_a_binary_error(small, data):
    damaged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 8))):
        region = data.draw(st.sampled_from([(0, 1024), (len(small) - 1024, len(small)), (0, len(small))]))
        position = data.draw(st.integers(max(0, region[0]), region[1] - 1))
        damaged[position] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(small)), st.integers(0, len(small))))
    message = refusal(read_shared_object, bytes(damaged[:cut]), "damaged.so")
    assert "damaged.so" in message or not message


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_after_the_magic_gives_a_binary_error(tail):
    with pytest.raises(BinaryError, match=r"noise\.so"):
        read_shared_object(b"\x7fELF" + tail, "noise.so")
