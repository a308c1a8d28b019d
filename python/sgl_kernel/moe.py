"""Routing of tokens to experts, and the work around grouped GEMMs (not provided yet)."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgl_kernel._missing import not_provided
from sgl_kernel.moe_align import moe_align_block_size
from sgl_kernel.moe_gate import moe_fused_gate, topk_softmax

__all__ = [
    "apply_shuffle_mul_sum",
    "cutlass_fp4_group_mm",
    "ep_moe_post_reorder",
    "ep_moe_pre_reorder",
    "ep_moe_silu_and_mul",
    "fp8_blockwise_scaled_grouped_mm",
    "moe_align_block_size",
    "moe_fused_gate",
    "prepare_moe_input",
    "topk_softmax",
]


@not_provided
def ep_moe_pre_reorder(
    input_tensor: Tensor,
    gateup_input: Tensor,
    src2dst: Tensor,
    topk_ids: Tensor,
    a1_scales: Tensor | None,
    start_expert_id: int,
    end_expert_id: int,
    topk: int,
    use_per_token_if_dynamic: bool,
) -> None:
    """Scatters tokens to the rows of this rank's experts, divided by their scale."""


@not_provided
def ep_moe_silu_and_mul(
    gateup_output: Tensor,
    down_input: Tensor,
    reorder_topk_ids: Tensor,
    scales: Tensor | None,
    start_expert_id: int,
    end_expert_id: int,
) -> None:
    """SwiGLU of the rows of this rank's experts, divided by their scale."""


@not_provided
def ep_moe_post_reorder(
    down_output: Tensor,
    output: Tensor,
    src2dst: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    start_expert_id: int,
    end_expert_id: int,
    topk: int,
) -> None:
    """The weighted sum of each token's rows that this rank's experts computed."""


@not_provided
def fp8_blockwise_scaled_grouped_mm(
    output: Tensor,
    a_ptrs: Tensor,
    b_ptrs: Tensor,
    out_ptrs: Tensor,
    a_scales_ptrs: Tensor,
    b_scales_ptrs: Tensor,
    a: Tensor,
    b: Tensor,
    scales_a: Tensor,
    scales_b: Tensor,
    stride_a: Tensor,
    stride_b: Tensor,
    stride_c: Tensor,
    layout_sfa: Tensor,
    layout_sfb: Tensor,
    problem_sizes: Tensor,
    expert_offsets: Tensor,
    workspace: Tensor,
) -> None:
    """float8 times float8 with block scales, for each expert's rows."""


@not_provided
def prepare_moe_input(
    topk_ids: Tensor,
    expert_offsets: Tensor,
    problem_sizes1: Tensor,
    problem_sizes2: Tensor,
    input_permutation: Tensor,
    output_permutation: Tensor,
    num_experts: int,
    n: int,
    k: int,
    blockscale_offsets: Tensor | None = None,
) -> None:
    """The first row and the problem sizes of every expert, and the sort by expert and back."""


@not_provided
def apply_shuffle_mul_sum(input: Tensor, output: Tensor, permutation: Tensor, factors: Tensor | None) -> None:
    """The sum of each token's permuted rows, times its factors if given."""


@not_provided
def cutlass_fp4_group_mm(
    a_fp4: Tensor,
    b_fp4: Tensor,
    a_blockscale: Tensor,
    b_blockscale: Tensor,
    alphas: Tensor,
    out_dtype: torch.dtype,
    device: torch.device,
    params: dict[str, Any],
) -> Tensor:
    """float4 times float4 with block scales, for each expert's rows."""
