"""The checks that CPU kernels and fakes share: those of csrc/ops/checks.h, in the same words.

A failed check raises RuntimeError with a message of the form ``op: argument: expected X, got Y``.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor


class Argument(NamedTuple):
    """An argument with its names, for messages."""

    op: str
    name: str
    tensor: Tensor


def fail(op: str, argument: str, expected: str, got: object) -> NoReturn:
    raise RuntimeError(f"{op}: {argument}: expected {expected}, got {got}")


def check_dim(a: Argument, dim: int, meaning: str) -> None:
    if a.tensor.dim() != dim:
        fail(a.op, a.name, f"{dim}-D {meaning}", f"{a.tensor.dim()}-D {shape(a.tensor)}")


def check_size(a: Argument, d: int, expected: int, reason: str) -> None:
    if a.tensor.size(d) != expected:
        fail(a.op, f"{a.name}.size({d})", f"{expected} ({reason})", a.tensor.size(d))


def check_dtype(a: Argument, expected: torch.dtype, reason: str) -> None:
    if a.tensor.dtype != expected:
        fail(a.op, a.name, f"{_name(expected)} ({reason})", _name(a.tensor.dtype))


def check_dtype_in(a: Argument, allowed: tuple[torch.dtype, ...]) -> None:
    if a.tensor.dtype not in allowed:
        fail(a.op, a.name, " or ".join(map(_name, allowed)), _name(a.tensor.dtype))


def check_device(a: Argument, expected: torch.device, reason: str) -> None:
    if a.tensor.device != expected:
        fail(a.op, a.name, f"a tensor on {expected} ({reason})", f"one on {a.tensor.device}")


def check_last_stride(a: Argument) -> None:
    """The last dimension is contiguous. One element, or none, has no stride to speak of."""
    if a.tensor.size(-1) > 1 and a.tensor.stride(-1) != 1:
        fail(a.op, f"{a.name}.stride(-1)", "1", a.tensor.stride(-1))


def check_contiguous(a: Argument) -> None:
    if not a.tensor.is_contiguous():
        fail(a.op, a.name, "a contiguous tensor", f"{shape(a.tensor)} with other strides")


def shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
