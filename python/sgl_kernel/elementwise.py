"""Norms, activations, rotary embedding and float8 store; the families live in modules of their own."""

from __future__ import annotations

from sgl_kernel.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from sgl_kernel.kv_store import downcast_fp8
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
