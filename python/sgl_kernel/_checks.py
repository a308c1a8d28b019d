"""The checks that CPU kernels and fakes share; the CUDA side makes the same ones.

A failed check raises RuntimeError with a message of the form ``op: argument: expected X, got Y``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor


def fail(op: str, argument: str, expected: object, got: object) -> NoReturn:
    raise RuntimeError(f"{op}: {argument}: expected {expected}, got {got}")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_dtype(op: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    if tensor.dtype not in allowed:
        expected = " or ".join(dtype_name(dtype) for dtype in allowed)
        fail(op, f"{name}.dtype", expected, dtype_name(tensor.dtype))


def check_dim(op: str, name: str, tensor: Tensor, dim: int) -> None:
    if tensor.dim() != dim:
        fail(op, f"{name}.dim()", dim, tensor.dim())


def check_size(op: str, name: str, tensor: Tensor, dim: int, size: int, source: str) -> None:
    """``source`` says where the expected size comes from, for example ``input.size(1)``."""
    if tensor.size(dim) != size:
        fail(op, f"{name}.size({dim})", f"{size} ({source})", tensor.size(dim))


def check_last_stride(op: str, name: str, tensor: Tensor) -> None:
    """Elements of the last dimension must be adjacent; the stride of a single element means nothing."""
    if tensor.size(-1) > 1 and tensor.stride(-1) != 1:
        fail(op, f"{name}.stride({tensor.dim() - 1})", 1, tensor.stride(-1))


def check_like(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Same dtype, same device."""
    if tensor.dtype != other.dtype:
        expected = f"{dtype_name(other.dtype)} ({other_name}.dtype)"
        fail(op, f"{name}.dtype", expected, dtype_name(tensor.dtype))
    check_device(op, name, tensor, other_name, other)


def check_device(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        fail(op, f"{name}.device", f"{other.device} ({other_name}.device)", tensor.device)


def check_rows(op: str, name: str, tensor: Tensor) -> None:
    """The leading dimensions must flatten to rows one stride apart."""
    if tensor.numel() == 0:
        return
    inner: int | None = None  # the next dimension inward that has more than one element
    for d in range(tensor.dim() - 2, -1, -1):
        if tensor.size(d) == 1:
            continue
        if inner is not None:
            expected = tensor.size(inner) * tensor.stride(inner)
            if tensor.stride(d) != expected:
                source = f"{name}.size({inner}) * {name}.stride({inner})"
                fail(op, f"{name}.stride({d})", f"{expected} ({source})", tensor.stride(d))
        inner = d
