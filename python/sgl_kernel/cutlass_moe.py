"""Grouped GEMM of int4 weights and float8 activations, for mixtures of experts. None is provided yet."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from torch import Tensor

from sgl_kernel._missing import not_provided

__all__ = ["cutlass_w4a8_moe_mm", "get_cutlass_w4a8_moe_mm_data"]


@not_provided
def get_cutlass_w4a8_moe_mm_data(
    topk_ids: Tensor,
    expert_offsets: Tensor,
    problem_sizes1: Tensor,
    problem_sizes2: Tensor,
    input_permutation: Tensor,
    output_permutation: Tensor,
    num_experts: int,
    n: int,
    k: int,
) -> None:
    """The first row and the two problem sizes of every expert."""


@not_provided
def cutlass_w4a8_moe_mm(
    d: Tensor,
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    experts_offsets: Tensor,
    problem_sizes: Tensor,
    a_strides: Tensor,
    b_strides: Tensor,
    d_strides: Tensor,
    s_strides: Tensor,
    chunk_size: int = 128,
    topk: int = 8,
) -> None:
    """``d`` = each expert's rows of float8 ``a`` times its int4 weights ``b``, with group scales."""
