"""Filtering and sampling of token probabilities. None is provided yet.

Probabilities and logits are [batch, vocabulary]; a threshold is a number or a tensor [batch].
"""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernel._missing import not_provided

__all__ = [
    "min_p_sampling_from_probs",
    "top_k_mask_logits",
    "top_k_renorm_prob",
    "top_k_renorm_probs",
    "top_k_top_p_sampling_from_logits",
    "top_k_top_p_sampling_from_probs",
    "top_p_renorm_prob",
    "top_p_renorm_probs",
    "top_p_sampling_from_probs",
]


@not_provided
def top_k_renorm_probs(probs: Tensor, top_k: Tensor | int) -> Tensor:
    """The ``top_k`` largest probabilities of each row, renormalized, the others 0."""


top_k_renorm_prob = top_k_renorm_probs


@not_provided
def top_p_renorm_probs(probs: Tensor, top_p: Tensor | float) -> Tensor:
    """The smallest set of largest probabilities that reaches ``top_p``, renormalized, the others 0."""


top_p_renorm_prob = top_p_renorm_probs


@not_provided
def top_p_sampling_from_probs(
    probs: Tensor,
    top_p: Tensor | float,
    indices: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> Tensor:
    """One token per row, drawn from the smallest set of largest probabilities that reaches ``top_p``."""


@not_provided
def top_k_top_p_sampling_from_probs(
    probs: Tensor,
    top_k: Tensor | int,
    top_p: Tensor | float,
    indices: Tensor | None = None,
    filter_apply_order: str = "top_k_first",
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> Tensor:
    """One token per row, drawn from what both filters keep."""


@not_provided
def min_p_sampling_from_probs(
    probs: Tensor,
    min_p: Tensor | float,
    indices: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> Tensor:
    """One token per row, drawn from the probabilities of at least ``min_p`` times the largest."""


@not_provided
def top_k_mask_logits(logits: Tensor, top_k: Tensor | int) -> Tensor:
    """The ``top_k`` largest logits of each row, the others minus infinity."""


@not_provided
def top_k_top_p_sampling_from_logits(
    logits: Tensor,
    top_k: Tensor | int,
    top_p: Tensor | float,
    indices: Tensor | None = None,
    filter_apply_order: str = "top_k_first",
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> Tensor:
    """``top_k_top_p_sampling_from_probs`` of the softmax of ``logits``."""
