"""Root-mean-square normalization, alone or fused with the residual addition that precedes it.

Tensors are [tokens, hidden], float16 or bfloat16; their last stride is 1, their row strides are free and may
differ. ``weight`` is [hidden], contiguous, of the same dtype. All is computed in float32 and rounded once. A
violation raises RuntimeError. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernel._checks import (
    Argument,
    check_device,
    check_dim,
    check_dtype,
    check_dtype_in,
    check_last_stride,
    check_size,
)
from sgl_kernel._library import fakes, implements, ops
from sgl_kernel.utils import default_pdl

__all__ = ["fused_add_rmsnorm", "gemma_fused_add_rmsnorm", "gemma_rmsnorm", "rmsnorm"]


def rmsnorm(
    input: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    out: Tensor | None = None,
    enable_pdl: bool | None = None,
) -> Tensor:
    """``out = input / sqrt(mean(input^2) + eps) * weight``, per row.

    Writes to ``out`` if given (it may be ``input``), else to a new tensor, and returns it. ``enable_pdl``, a
    hint, asks for programmatic dependent launch; None: where the GPU has it.
    """
    if out is None:
        out = torch.empty_like(input)
    _rmsnorm(out, input, weight, eps, default_pdl() if enable_pdl is None else enable_pdl)
    return out


def fused_add_rmsnorm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    enable_pdl: bool | None = None,
) -> None:
    """In place: ``residual = input + residual``, then ``input = rmsnorm(residual)``.

    The normalization sees the sum before it is rounded. ``enable_pdl`` as in ``rmsnorm``.
    """
    _fused_add_rmsnorm(input, residual, weight, eps, default_pdl() if enable_pdl is None else enable_pdl)


def gemma_rmsnorm(
    input: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    out: Tensor | None = None,
    enable_pdl: bool | None = None,
) -> Tensor:
    """As ``rmsnorm``, with the factor ``1 + weight`` (added in float32)."""
    if out is None:
        out = torch.empty_like(input)
    _gemma_rmsnorm(out, input, weight, eps, default_pdl() if enable_pdl is None else enable_pdl)
    return out


def gemma_fused_add_rmsnorm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    enable_pdl: bool | None = None,
) -> None:
    """As ``fused_add_rmsnorm``, with the factor ``1 + weight`` (added in float32)."""
    _gemma_fused_add_rmsnorm(
        input, residual, weight, eps, default_pdl() if enable_pdl is None else enable_pdl
    )


_DTYPES = (torch.float16, torch.bfloat16)

_rmsnorm = ops.rmsnorm.default
_fused_add_rmsnorm = ops.fused_add_rmsnorm.default
_gemma_rmsnorm = ops.gemma_rmsnorm.default
_gemma_fused_add_rmsnorm = ops.gemma_fused_add_rmsnorm.default


def _check(op: str, input: Tensor, other_name: str, other: Tensor, weight: Tensor) -> None:
    """``other`` is the output or the residual."""
    a = Argument(op, "input", input)
    check_dim(a, 2, "[tokens, hidden]")
    check_dtype_in(a, _DTYPES)
    check_last_stride(a)

    a = Argument(op, other_name, other)
    check_dim(a, 2, "[tokens, hidden]")
    check_size(a, 0, input.size(0), "input.size(0)")
    check_size(a, 1, input.size(1), "input.size(1)")
    check_dtype(a, input.dtype, "dtype of input")
    check_device(a, input.device, "device of input")
    check_last_stride(a)

    a = Argument(op, "weight", weight)
    check_dim(a, 1, "[hidden]")
    check_size(a, 0, input.size(1), "input.size(1)")
    check_dtype(a, input.dtype, "dtype of input")
    check_device(a, input.device, "device of input")
    check_last_stride(a)


def _normalize(x: Tensor, factor: Tensor, eps: float) -> Tensor:
    """Both float32."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * factor


@fakes("rmsnorm")
def _rmsnorm_fake(output: Tensor, input: Tensor, weight: Tensor, eps: float, enable_pdl: bool) -> None:
    _check("rmsnorm", input, "output", output, weight)


@implements("rmsnorm")
def _rmsnorm_cpu(output: Tensor, input: Tensor, weight: Tensor, eps: float, enable_pdl: bool) -> None:
    _check("rmsnorm", input, "output", output, weight)
    output.copy_(_normalize(input.float(), weight.float(), eps))


@fakes("gemma_rmsnorm")
def _gemma_rmsnorm_fake(output: Tensor, input: Tensor, weight: Tensor, eps: float, enable_pdl: bool) -> None:
    _check("gemma_rmsnorm", input, "output", output, weight)


@implements("gemma_rmsnorm")
def _gemma_rmsnorm_cpu(output: Tensor, input: Tensor, weight: Tensor, eps: float, enable_pdl: bool) -> None:
    _check("gemma_rmsnorm", input, "output", output, weight)
    output.copy_(_normalize(input.float(), 1 + weight.float(), eps))


@fakes("fused_add_rmsnorm")
def _fused_add_rmsnorm_fake(
    input: Tensor, residual: Tensor, weight: Tensor, eps: float, enable_pdl: bool
) -> None:
    _check("fused_add_rmsnorm", input, "residual", residual, weight)


@implements("fused_add_rmsnorm")
def _fused_add_rmsnorm_cpu(
    input: Tensor, residual: Tensor, weight: Tensor, eps: float, enable_pdl: bool
) -> None:
    _check("fused_add_rmsnorm", input, "residual", residual, weight)
    total = input.float() + residual.float()
    residual.copy_(total)
    input.copy_(_normalize(total, weight.float(), eps))


@fakes("gemma_fused_add_rmsnorm")
def _gemma_fused_add_rmsnorm_fake(
    input: Tensor, residual: Tensor, weight: Tensor, eps: float, enable_pdl: bool
) -> None:
    _check("gemma_fused_add_rmsnorm", input, "residual", residual, weight)


@implements("gemma_fused_add_rmsnorm")
def _gemma_fused_add_rmsnorm_cpu(
    input: Tensor, residual: Tensor, weight: Tensor, eps: float, enable_pdl: bool
) -> None:
    _check("gemma_fused_add_rmsnorm", input, "residual", residual, weight)
    total = input.float() + residual.float()
    residual.copy_(total)
    input.copy_(_normalize(total, 1 + weight.float(), eps))
