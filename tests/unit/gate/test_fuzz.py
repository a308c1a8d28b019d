"""Damaged ELF files, fat binaries, cubins and wheels: a report or a BinaryError, whatever was done to them.

SGLK_FUZZ_CASES says how many cases each test tries (CI: a few hundred); with SGLK_FUZZ_RESULT what was tried
is written there as JSON. ``nox -s fuzz`` sets both.
"""

from __future__ import annotations

import io
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sgl_kernel_rebuild.abi._cubin import read_kernels
from sgl_kernel_rebuild.abi._fatbin import iter_code, read_payload
from sgl_kernel_rebuild.audit import audit
from sgl_kernel_rebuild.errors import BinaryError

CASES = int(os.environ.get("SGLK_FUZZ_CASES", "200"))
RESULT = os.environ.get("SGLK_FUZZ_RESULT")
FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # each case counts; a failing one is small enough as it is
    suppress_health_check=list(HealthCheck),
)
MEMORY = 1 << 30
"""Bytes that this process may take at most, pytest and compilers' output included."""
# What lengths, offsets and counts are set to.
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


@st.composite
def damage(draw, size, hot, *, most=6):
    """Return up to ``most`` changes to ``size`` bytes, usually in the (start, end) ranges of ``hot``."""
    changes = []
    for _ in range(draw(st.integers(1, most))):
        start, end = draw(st.sampled_from([*hot, (0, size)]))
        position = draw(st.integers(start, max(start, min(end, size) - 1)))
        kind = draw(st.sampled_from(["byte", "byte", "field", "copy", "cut"]))
        if kind == "byte":
            value = bytes([draw(st.integers(0, 255))])
        elif kind == "field":
            value = draw(st.sampled_from(EXTREMES)).to_bytes(8, "little")[: draw(st.sampled_from([2, 4, 8]))]
        elif kind == "copy":
            value = draw(st.integers(0, size - 1)), draw(st.integers(1, 64))
        else:
            value = None if draw(st.integers(0, 9)) == 0 else b"\0"
        changes.append((position, value))
    return changes


def apply(data, changes):
    damaged = bytearray(data)
    for position, value in changes:
        if value is None:
            del damaged[position:]
        elif isinstance(value, tuple):
            piece = damaged[value[0] : value[0] + value[1]]
            damaged[position : position + len(piece)] = piece
        else:
            damaged[position : position + len(value)] = value
    return bytes(damaged)


class Tally:
    """What was tried; one line of the result per test."""

    def __init__(self):
        self.tests = {}

    def run(self, name, action, *arguments):
        """Run one case; return the message of its refusal, "" if there was none."""
        entry = self.tests.setdefault(
            name, {"cases": 0, "read": 0, "refused": 0, "seconds": 0.0, "slowest_ms": 0.0}
        )
        entry["cases"] += 1
        start = time.perf_counter()
        try:
            action(*arguments)
            message = ""
        except BinaryError as err:
            message = str(err)
        seconds = time.perf_counter() - start
        entry["refused" if message else "read"] += 1
        entry["seconds"] += seconds
        entry["slowest_ms"] = max(entry["slowest_ms"], 1000 * seconds)
        return message


@pytest.fixture(scope="module")
def tally():
    tally = Tally()
    yield tally
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if RESULT:
        document = {
            "cases": sum(entry["cases"] for entry in tally.tests.values()),
            "tests": {
                name: {**item, "seconds": round(item["seconds"]), "slowest_ms": round(item["slowest_ms"])}
                for name, item in tally.tests.items()
            },
            "peak_memory_mb": round(peak / 1e6),
            "command": f"nox -s fuzz -- {CASES}",
            "python": platform.python_version(),
            "hypothesis": hypothesis.__version__,
            "arguments": sys.argv[1:],
        }
        Path(RESULT).write_text(json.dumps(document, indent=1) + "\n")
    assert peak < MEMORY


@FUZZ
@given(data=st.data())
def test_shared_objects(library, tally, tmp_path_factory, data):
    size = len(library)
    tables = int.from_bytes(library[0x28:0x30], "little")  # e_shoff
    hot = [(0, 64), (64, 1024), (1024, 8192), (tables, size)]
    path = tmp_path_factory.getbasetemp() / "damaged.so"
    path.write_bytes(apply(library, data.draw(damage(size, hot))))
    message = tally.run("shared object", audit, path)
    assert "damaged" in message or not message


def read_fat_binary(data):
    sections = {".nv_fatbin": ((0, len(data)),)}
    for code in list(iter_code(io.BytesIO(data), sections, "damaged")):
        payload = read_payload(io.BytesIO(data), code, "damaged")
        if code.kind == "cubin":
            read_kernels(payload, "damaged")


@FUZZ
@given(data=st.data())
def test_fat_binaries(device_code, tally, data):
    fatbin = device_code.fatbin
    starts = [code.offset for code in iter_code(io.BytesIO(fatbin), {".nv_fatbin": ((0, len(fatbin)),)}, "x")]
    hot = [(0, 16), *((start - 80, start + 16) for start in starts)]
    message = tally.run("fat binary", read_fat_binary, apply(fatbin, data.draw(damage(len(fatbin), hot))))
    assert "damaged" in message or not message


@FUZZ
@given(data=st.data())
def test_cubins(device_code, tally, data):
    cubin = device_code.cubins["120"]
    size = len(cubin)
    tables = int.from_bytes(cubin[0x28:0x30], "little")
    hot = [(0, 64), (64, 1024), (tables, size)]
    message = tally.run("cubin", read_kernels, apply(cubin, data.draw(damage(size, hot))), "damaged")
    assert "damaged" in message or not message


@pytest.fixture(scope="module")
def wheel(library, tmp_path_factory):
    """A small wheel with a library, as bytes, and where its headers and its directory lie."""
    import zipfile

    from sgl_kernel_rebuild.wheel.archive import record_digest

    info = "demo-1.0.dist-info"
    members = {
        "demo/late.so": library,
        "demo/__init__.py": b"VALUE = 1\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\nRequires-Dist: torch>=2.7\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nTag: cp310-abi3-manylinux_2_28_x86_64\n",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        lines = [f"{name},{record_digest(data)},{len(data)}" for name, data in members.items()]
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]))
        headers = [(item.header_offset, item.header_offset + 64) for item in archive.infolist()]
    data = buffer.getvalue()
    return data, [*headers, (data.index(b"PK\1\2"), len(data)), (len(data) - 22, len(data))]


@FUZZ
@given(data=st.data())
def test_wheels(wheel, tally, tmp_path_factory, data):
    content, hot = wheel
    name = "demo-1.0-cp310-abi3-manylinux_2_28_x86_64.whl"
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(apply(content, data.draw(damage(len(content), hot, most=2))))
    message = tally.run("wheel", audit, path)
    assert name in message or not message
