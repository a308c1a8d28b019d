"""Norms, gated activations and rotary embedding under one name; the families live in modules of their own."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from torch import Tensor

from sgl_kernel._missing import not_provided
from sgl_kernel.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from sgl_kernel.norm import fused_add_rmsnorm, gemma_fused_add_rmsnorm, gemma_rmsnorm, rmsnorm
from sgl_kernel.rope import FusedSetKVBufferArg, apply_rope_with_cos_sin_cache_inplace

__all__ = [
    "FusedSetKVBufferArg",
    "apply_rope_with_cos_sin_cache_inplace",
    "downcast_fp8",
    "fused_add_rmsnorm",
    "gelu_and_mul",
    "gelu_tanh_and_mul",
    "gemma_fused_add_rmsnorm",
    "gemma_rmsnorm",
    "rmsnorm",
    "silu_and_mul",
]


@not_provided
def downcast_fp8(
    k: Tensor,
    v: Tensor,
    k_out: Tensor,
    v_out: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    loc: Tensor,
    mult: int = 1,
    offset: int = 0,
) -> None:
    """Scales keys and values to float8_e4m3fn and stores them at the rows ``loc * mult + offset``."""
