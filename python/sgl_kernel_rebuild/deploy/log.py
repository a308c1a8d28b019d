"""What a server's log says about its death: its own error, and what to do about the common ones."""

from __future__ import annotations

import re

__all__ = ["explain", "find_error", "server_error"]

_SHOWN = 12
_ERROR = re.compile(r"^(?:\[[^\]]*\]\s*)?(?:[\w.]+(?:Error|Exception|Interrupt|Exit)\b.*|.*\bError: .*)$")
_TRACEBACK = "Traceback (most recent call last):"
# What a server tries and does without.
_HARMLESS = re.compile(r"\bIgnore import error\b|\bFailed to import \w+, disable\b")

_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"CUDA out of memory|OutOfMemoryError",
        "The GPU ran out of memory: lower mem-fraction-static, cuda-graph-max-bs or chunked-prefill-size.",
    ),
    (
        r"Not enough memory|increase --mem-fraction-static",
        "The weights leave no room for the KV cache: raise mem-fraction-static or lower max-total-tokens.",
    ),
    (
        r"no kernel image is available|not compiled for|sm_\d+ is not compatible",
        "torch or a kernel package has no code for this GPU: sgl-kernel-rebuild doctor names which.",
    ),
    (
        r"undefined symbol",
        "A compiled package was built for another torch: sgl-kernel-rebuild doctor names which.",
    ),
    (r"[Aa]ddress already in use", "Another program has the port: choose one with --port."),
    (
        r"No module named|cannot import name",
        "A package is missing or of another version: sgl-kernel-rebuild debug shows the import chain.",
    ),
    (
        r"NotProvidedError",
        "SGLang called a kernel that this build does not provide: python -m sgl_kernel lists those.",
    ),
    (
        r"not the path to a directory|does not appear to have a file named|Repository Not Found",
        "The model folder is incomplete or the name is wrong: fetch it with hf download.",
    ),
    (
        r"driver version is insufficient|no CUDA-capable device|Found no NVIDIA driver",
        "The NVIDIA driver is missing, too old or not passed into the container: nvidia-smi must work there.",
    ),
)


def server_error(log: str) -> str:
    """Return the part of a log that says why the server ended: its error, or where none is named, its end."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    return find_error(log) or "\n".join(lines[-_SHOWN:]) or "(the log is empty)"


def find_error(log: str) -> str | None:
    """Return the error that a log names, None where it names none.

    That is the end of the last traceback, else the last line that names an exception, else the last that
    holds a known message; what the server says that it does without is none.
    """
    lines = [line.rstrip() for line in log.splitlines() if line.strip() and not _HARMLESS.search(line)]
    starts = [number for number, line in enumerate(lines) if _TRACEBACK in line]
    for start in reversed(starts):
        for number in range(start + 1, len(lines)):
            if _ERROR.match(lines[number]):
                return "\n".join(lines[max(start, number - _SHOWN) : number + 1])
    for number in range(len(lines) - 1, -1, -1):
        if _ERROR.match(lines[number]):
            return lines[number]
    return next((line for line in reversed(lines) if explain(line)), None)


def explain(error: str) -> str | None:
    """Return what to do about an error that is known, None for another."""
    return next((advice for pattern, advice in _KNOWN if re.search(pattern, error)), None)
