"""Routing of tokens to experts, and the work around grouped GEMMs. None is provided yet."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgl_kernel._missing import not_provided

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
def moe_align_block_size(
    topk_ids: Tensor,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Tensor,
    experts_ids: Tensor,
    num_tokens_post_pad: Tensor,
    cumsum_buffer: Tensor,
    pad_sorted_token_ids: bool = False,
) -> None:
    """Sorts the choices of all tokens by expert, padded to whole blocks."""


@not_provided
def topk_softmax(
    topk_weights: Tensor, topk_ids: Tensor, gating_output: Tensor, renormalize: bool = False
) -> None:
    """The largest probabilities of each token's softmax over the experts."""


@not_provided
def moe_fused_gate(
    input_tensor: Tensor,
    bias: Tensor,
    num_expert_group: int,
    topk_group: int,
    topk: int,
    num_fused_shared_experts: int = 0,
    routed_scaling_factor: float = 0,
    apply_routed_scaling_factor_on_output: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sigmoid gating with a bias, limited to the best groups of experts: weights and ids."""


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
