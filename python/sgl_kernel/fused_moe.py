"""A mixture of experts over Marlin weights. The kernel is not provided yet; the helpers are."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernel._missing import not_provided
from sgl_kernel.scalar_type import ScalarType, scalar_types

__all__ = ["fused_marlin_moe", "fused_marlin_moe_fake", "get_scalar_type"]


def get_scalar_type(num_bits: int, has_zp: bool) -> ScalarType:
    """The type of a quantized weight: uint4 with zero points, else the biased type of 4 or 8 bits.

    Raises ValueError for another number of bits, or for zero points with 8.
    """
    if has_zp:
        if num_bits != 4:
            raise ValueError(f"get_scalar_type: num_bits: expected 4 (has_zp), got {num_bits}")
        return scalar_types.uint4
    if num_bits not in (4, 8):
        raise ValueError(f"get_scalar_type: num_bits: expected 4 or 8, got {num_bits}")
    return scalar_types.uint4b8 if num_bits == 4 else scalar_types.uint8b128


@not_provided
def fused_marlin_moe(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    w1_scale: Tensor,
    w2_scale: Tensor,
    gating_output: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    global_num_experts: int = -1,
    expert_map: Tensor | None = None,
    g_idx1: Tensor | None = None,
    g_idx2: Tensor | None = None,
    sort_indices1: Tensor | None = None,
    sort_indices2: Tensor | None = None,
    w1_zeros: Tensor | None = None,
    w2_zeros: Tensor | None = None,
    workspace: Tensor | None = None,
    num_bits: int = 8,
    is_k_full: bool = True,
    inplace: bool = False,
) -> Tensor:
    """The weighted sum over each token's experts of their two quantized GEMMs with SwiGLU between."""


def fused_marlin_moe_fake(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    w1_scale: Tensor,
    w2_scale: Tensor,
    gating_output: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    g_idx1: Tensor | None = None,
    g_idx2: Tensor | None = None,
    sort_indices1: Tensor | None = None,
    sort_indices2: Tensor | None = None,
    w1_zeros: Tensor | None = None,
    w2_zeros: Tensor | None = None,
    num_bits: int = 8,
    is_k_full: bool = True,
) -> Tensor:
    """A result of the shape, dtype and device of ``fused_marlin_moe``'s, not computed."""
    return torch.empty_like(hidden_states)
