"""Attention over vertical and slash patterns (Jiang et al., "MInference 1.0", 2024). None is provided yet."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from typing import Any

from torch import Tensor

from sgl_kernel._missing import not_provided
from sgl_kernel.flash_attn import maybe_contiguous

__all__ = [
    "convert_vertical_slash_indexes",
    "convert_vertical_slash_indexes_mergehead",
    "maybe_contiguous",
    "sparse_attn_func",
    "sparse_attn_varlen_func",
]


@not_provided
def convert_vertical_slash_indexes(
    q_seqlens: Tensor,
    kv_seqlens: Tensor,
    vertical_indexes: Tensor,
    slash_indexes: Tensor,
    context_size: int,
    block_size_M: int,
    block_size_N: int,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The key blocks and single columns that each block of queries attends to."""


@not_provided
def convert_vertical_slash_indexes_mergehead(
    q_seqlens: Tensor,
    kv_seqlens: Tensor,
    vertical_indexes: Tensor,
    slash_indexes: Tensor,
    vertical_indices_count: Tensor,
    slash_indices_count: Tensor,
    context_size: int,
    block_size_M: int,
    block_size_N: int,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``convert_vertical_slash_indexes`` with numbers of indexes that differ by head."""


@not_provided
def sparse_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_count: Tensor,
    block_offset: Tensor,
    column_count: Tensor,
    column_index: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    return_softmax_lse: bool = False,
    out: Tensor | None = None,
) -> Any:
    """Attention of each block of queries over its blocks and columns."""


@not_provided
def sparse_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_count: Tensor,
    block_offset: Tensor,
    column_count: Tensor,
    column_index: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    return_softmax_lse: bool = False,
    out: Tensor | None = None,
) -> Any:
    """``sparse_attn_func`` for packed sequences."""
