"""Atomic writes and hashing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sgl_kernel_rebuild.errors import ToolchainError

TEMPORARY_MARK = ".tmp-"


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def replace_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and move it there, so that readers see all of it or nothing."""
    temporary = path.with_name(f"{path.name}{TEMPORARY_MARK}{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_output(path: Path, data: bytes) -> None:
    """`replace_bytes` for a file that the caller asked for: its folder is made, failure is an error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, data)
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise ToolchainError(
            f"output: {path}: cannot be written: {reason}\nFree space or choose a writable folder."
        ) from err


def refuse_overwriting(output: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ToolchainError if ``output`` is one of ``inputs``, which a failure would remove."""
    for each in inputs:
        if os.path.abspath(each) == os.path.abspath(output):
            raise ToolchainError(f"output: {output}: expected a new file, got an input\nName another output.")


def remove_output(path: Path) -> None:
    """Remove what an earlier run left at ``path``; what cannot be removed will fail to be written."""
    with contextlib.suppress(OSError):
        path.unlink()


def canonical_json(data: Any) -> bytes:
    """Return JSON whose bytes depend on the content alone."""
    return json.dumps(data, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def pretty_json(data: Any) -> bytes:
    """Return indented JSON with sorted keys and a final newline."""
    return (json.dumps(data, sort_keys=True, ensure_ascii=True, indent=2) + "\n").encode()
