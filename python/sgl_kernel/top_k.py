"""The largest elements along a dimension."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fast_topk"]


def fast_topk(values: Tensor, topk: int, dim: int) -> tuple[Tensor, Tensor]:
    """The ``topk`` largest values, descending, and their int64 indices; for one, a maximum is cheaper."""
    if topk == 1:
        largest, indices = torch.max(values, dim=dim, keepdim=True)
    else:
        largest, indices = torch.topk(values, topk, dim=dim)
    return largest, indices
