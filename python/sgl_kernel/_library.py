"""Loads ``libsgl_kernel.so``, which registers the operators and their CUDA kernels, and registers the rest.

Modules that bind an operator take ``ops`` from here: the import order then cannot be wrong.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

LIBRARY = Path(__file__).with_name("libsgl_kernel.so")

_torch: Any = torch  # what is used of it here has no annotations


class LibraryError(ImportError):
    """The library of the kernels is missing or does not load."""


def _load(path: Path) -> None:
    """Raises LibraryError if the file is absent, or the linker refuses it, or torch refuses its operators."""
    if not path.is_file():
        raise LibraryError(
            f"sgl_kernel: {path}: expected the library of the kernels, got no such file\n"
            "A source tree holds none: install the package (pip install .) and import it from elsewhere."
        )
    try:
        _torch.ops.load_library(str(path))
        why_not: Any = ctypes.CDLL(str(path)).sglk_load_error
    except OSError as err:
        raise LibraryError(
            f"sgl_kernel: {path}: expected a library that loads under torch {torch.__version__}, got: {err}\n"
            "It needs torch 2.7.0 or later on x86-64 Linux: reinstall sgl-kernel, or install such a torch."
        ) from err
    why_not.restype = ctypes.c_char_p
    message = why_not()
    if message is not None:
        raise LibraryError(f"{message.decode()}\nUninstall the other package, or import only one of the two.")


def implements(op: str) -> Callable[[F], F]:
    """The decorated function becomes the operator's CPU kernel."""

    def register(function: F) -> F:
        _torch.library.impl(f"sgl_kernel::{op}", "CPU", function)
        return function

    return register


def fakes(op: str) -> Callable[[F], F]:
    """The decorated function stands in for the operator on tensors without data (meta, tracing)."""

    def register(function: F) -> F:
        _torch.library.register_fake(f"sgl_kernel::{op}", function)
        return function

    return register


_load(LIBRARY)
ops: Any = _torch.ops.sgl_kernel
