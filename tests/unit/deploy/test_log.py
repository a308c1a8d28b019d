"""The server's own error, and what to do about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sgl_kernel_rebuild.deploy.log import explain, find_error, server_error

OUT_OF_MEMORY = """\
[2026-01-01 00:00:00] Load weight begin.
Traceback (most recent call last):
  File "scheduler.py", line 1, in run
    raise
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
[2026-01-01 00:00:01] Received sigquit from a child process.
Killed
"""


def test_the_last_traceback_is_shown_to_its_error():
    error = server_error(OUT_OF_MEMORY)
    assert error.splitlines()[0].startswith("Traceback")
    assert error.splitlines()[-1].startswith("torch.OutOfMemoryError: CUDA out of memory")


def test_without_a_traceback_the_last_error_is_shown():
    assert server_error("start\nValueError: bad option\nbye") == "ValueError: bad option"


def test_otherwise_the_end_is_shown():
    assert server_error("\n".join(map(str, range(100)))).splitlines() == list(map(str, range(88, 100)))
    assert server_error(" \n") == "(the log is empty)"


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", "lower mem-fraction-static"),
        (
            "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
            "raise mem-fraction",
        ),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "doctor"),
        ("ImportError: x.so: undefined symbol: _ZN3c104cuda9SetDeviceEab", "doctor"),
        ("OSError: [Errno 98] Address already in use", "--port"),
        ("ModuleNotFoundError: No module named 'outlines'", "debug"),
        ("sgl_kernel.NotProvidedError: cutlass_mla_decode", "python -m sgl_kernel"),
        ("RuntimeError: Found no NVIDIA driver on your system.", "nvidia-smi"),
    ],
)
def test_known_errors_have_advice(line, advice):
    assert advice in explain(line)


SOUND = """\
[2026-01-01 00:00:00] Ignore import error when loading models.glm4v_moe: No module named 'glm4v_moe'
WARNING:configurer:Failed to import deep_gemm, disable ENABLE_JIT_DEEPGEMM.
[2026-01-01 00:00:01] INFO:     127.0.0.1:1 - "GET /health HTTP/1.1" 503 Service Unavailable
[2026-01-01 00:00:02] Decode batch. #running-req: 8, #token: 953, token usage: 0.03
"""


def test_a_sound_log_has_no_error():
    assert find_error(SOUND) is None
    assert find_error("") is None
    assert find_error(OUT_OF_MEMORY) == server_error(OUT_OF_MEMORY)
    line = "ERROR: [Errno 98] error while attempting to bind on address: address already in use"
    assert find_error(f"{line}\n{SOUND}") == line


def test_an_unknown_error_has_none():
    assert explain("ValueError: 42") is None


@given(st.text())
def test_any_log_has_an_error(log):
    assert server_error(log)
