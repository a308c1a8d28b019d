"""Gated activations: ``out = act(input[..., :d]) * input[..., d:]`` for input [..., 2 * d] and out [..., d].

float16, bfloat16 or float32; computed in float32 and rounded once. The last stride is 1 and the leading
dimensions flatten to rows one stride apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sgl_kernel._checks import (
    Argument,
    check_device,
    check_dim,
    check_dtype,
    check_dtype_in,
    check_last_stride,
    check_size,
    fail,
    shape,
)
from sgl_kernel._library import fakes, implements, ops

__all__ = ["gelu_and_mul", "gelu_tanh_and_mul", "silu_and_mul"]


def silu_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    """``silu(x) = x / (1 + exp(-x))``. Returns ``out``, or a new contiguous tensor.

    Raises ValueError if a row of ``input`` is no multiple of 16 bytes, AssertionError if ``out`` has another
    shape.
    """
    out = _prepare("silu_and_mul", input, out)
    _silu_and_mul(out, input)
    return out


def gelu_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    """``gelu(x) = x / 2 * (1 + erf(x / sqrt(2)))``. As ``silu_and_mul`` in all else."""
    out = _prepare("gelu_and_mul", input, out)
    _gelu_and_mul(out, input)
    return out


def gelu_tanh_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    """``gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))``.

    As ``silu_and_mul`` in all else.
    """
    out = _prepare("gelu_tanh_and_mul", input, out)
    _gelu_tanh_and_mul(out, input)
    return out


_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_silu_and_mul = ops.silu_and_mul.default
_gelu_and_mul = ops.gelu_and_mul.default
_gelu_tanh_and_mul = ops.gelu_tanh_and_mul.default


def _prepare(op: str, input: Tensor, out: Tensor | None) -> Tensor:
    """The API's checks of its arguments, and the output."""
    shape = input.shape
    if shape[-1] * input.itemsize % 16 != 0:
        size = shape[-1] * input.itemsize
        raise ValueError(f"{op}: input.size(-1): expected a multiple of 16 bytes, got {size} bytes")
    out_shape = (*shape[:-1], shape[-1] // 2)
    if out is None:
        return input.new_empty(out_shape)
    if out.shape != out_shape:
        raise AssertionError(f"{op}: out.shape: expected {list(out_shape)}, got {list(out.shape)}")
    return out


def _check(op: str, out: Tensor, input: Tensor) -> None:
    if input.dim() == 0:
        fail(op, "input", "[..., 2 * width]", "0-D")
    a = Argument(op, "input", input)
    check_dtype_in(a, _DTYPES)
    if input.size(-1) % 2 != 0:
        fail(op, "input.size(-1)", "an even number", input.size(-1))
    check_last_stride(a)

    b = Argument(op, "out", out)
    check_dim(b, input.dim(), "(input.dim())")
    for d in range(input.dim() - 1):
        check_size(b, d, input.size(d), "input's")
    check_size(b, input.dim() - 1, input.size(-1) // 2, "half of input.size(-1)")
    check_dtype(b, input.dtype, "dtype of input")
    check_device(b, input.device, "device of input")
    check_last_stride(b)
    _check_rows(a)
    _check_rows(b)


def _check_rows(a: Argument) -> None:
    """The leading dimensions have one stride in common once they are flattened."""
    if a.tensor.numel() == 0:
        return
    rows = [d for d in range(a.tensor.dim() - 1) if a.tensor.size(d) != 1]
    for outer, inner in itertools.pairwise(rows):
        if a.tensor.stride(outer) != a.tensor.size(inner) * a.tensor.stride(inner):
            fail(a.op, a.name, "leading dimensions that flatten into rows", shape(a.tensor))


def _gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x * math.sqrt(0.5)))  # functional.gelu of infinity is NaN on the CPU


def _compute(op: str, act: Callable[[Tensor], Tensor], out: Tensor, input: Tensor) -> None:
    _check(op, out, input)
    gate, up = input.float().chunk(2, -1)
    out.copy_(act(gate) * up)


@fakes("silu_and_mul")
def _silu_and_mul_fake(out: Tensor, input: Tensor) -> None:
    _check("silu_and_mul", out, input)


@implements("silu_and_mul")
def _silu_and_mul_cpu(out: Tensor, input: Tensor) -> None:
    _compute("silu_and_mul", functional.silu, out, input)


@fakes("gelu_and_mul")
def _gelu_and_mul_fake(out: Tensor, input: Tensor) -> None:
    _check("gelu_and_mul", out, input)


@implements("gelu_and_mul")
def _gelu_and_mul_cpu(out: Tensor, input: Tensor) -> None:
    _compute("gelu_and_mul", _gelu, out, input)


@fakes("gelu_tanh_and_mul")
def _gelu_tanh_and_mul_fake(out: Tensor, input: Tensor) -> None:
    _check("gelu_tanh_and_mul", out, input)


@implements("gelu_tanh_and_mul")
def _gelu_tanh_and_mul_cpu(out: Tensor, input: Tensor) -> None:
    _compute("gelu_tanh_and_mul", lambda gate: functional.gelu(gate, approximate="tanh"), out, input)
