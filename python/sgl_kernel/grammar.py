"""Masks for grammar-guided sampling. Not provided yet."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from torch import Tensor

from sgl_kernel._missing import not_provided

__all__ = ["apply_token_bitmask_inplace_cuda"]


@not_provided
def apply_token_bitmask_inplace_cuda(
    logits: Tensor, bitmask: Tensor, indices: list[int] | Tensor | None = None
) -> None:
    """Sets the logits of the tokens whose bit is 0 to minus infinity."""
