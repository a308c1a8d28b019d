"""Repacking of quantized weights for the Marlin GEMM. None is provided yet."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from torch import Tensor

from sgl_kernel._missing import not_provided

__all__ = ["awq_marlin_moe_repack", "awq_marlin_repack", "gptq_marlin_repack"]


@not_provided
def gptq_marlin_repack(b_q_weight: Tensor, perm: Tensor, size_k: int, size_n: int, num_bits: int) -> Tensor:
    """GPTQ weights in Marlin's tiles, their rows permuted if ``perm`` is not empty."""


@not_provided
def awq_marlin_repack(b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int) -> Tensor:
    """AWQ weights in Marlin's tiles."""


@not_provided
def awq_marlin_moe_repack(
    b_q_weight: Tensor, perm: Tensor, size_k: int, size_n: int, num_bits: int
) -> Tensor:
    """``awq_marlin_repack`` for every expert."""
