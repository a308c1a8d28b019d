"""Merging of two partial attention outputs by their log-sum-exps.

Values are [tokens, heads, head_dim], float16, bfloat16 or float32; log-sum-exps [tokens, heads], cast to
float32. All are contiguous. With ``m = max(s_a, s_b)`` and ``w = base ** (s - m)``::

    v = (v_a * w_a + v_b * w_b) / (w_a + w_b)        s = m + log_base(w_a + w_b)

computed in float32 and rounded once. A part whose log-sum-exp is minus infinity is a sum over nothing: its
values do not enter, whatever they hold, and two such parts merge into zeros and minus infinity (where the
formula has 0 / 0). A NaN log-sum-exp gives NaN. Source: Ye et al., "Cascade Inference", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sgl_kernel._checks import (
    Argument,
    check_contiguous,
    check_device,
    check_dim,
    check_dtype,
    check_dtype_in,
    check_size,
    fail,
)
from sgl_kernel._library import fakes, implements, ops

__all__ = ["merge_state", "merge_state_v2"]


def merge_state(
    v_a: Tensor,
    s_a: Tensor,
    v_b: Tensor,
    s_b: Tensor,
    v_merged: Tensor | None = None,
    s_merged: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Merges two partial attention outputs by their log-sum-exps in base 2.

    Writes to ``v_merged`` and ``s_merged`` where given (they may be inputs of their kind), else to new
    tensors, and returns them.
    """
    return _merge(_merge_state, v_a, s_a, v_b, s_b, v_merged, s_merged)


def merge_state_v2(
    v_a: Tensor,
    s_a: Tensor,
    v_b: Tensor,
    s_b: Tensor,
    v_merged: Tensor | None = None,
    s_merged: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Merges two partial attention outputs by their natural log-sum-exps.

    A log-sum-exp of plus infinity counts as minus infinity. As ``merge_state`` in all else.
    """
    return _merge(_merge_state_v2, v_a, s_a, v_b, s_b, v_merged, s_merged)


_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_merge_state = ops.merge_state.default
_merge_state_v2 = ops.merge_state_v2.default


def _merge(
    op: Callable[..., None],
    v_a: Tensor,
    s_a: Tensor,
    v_b: Tensor,
    s_b: Tensor,
    v_merged: Tensor | None,
    s_merged: Tensor | None,
) -> tuple[Tensor, Tensor]:
    s_a, s_b = s_a.to(torch.float32), s_b.to(torch.float32)
    if v_merged is None:
        v_merged = torch.empty_like(v_a)
    if s_merged is None:
        s_merged = torch.empty_like(s_a)
    op(v_a, s_a, v_b, s_b, v_merged, s_merged)
    return v_merged, s_merged


def _check(
    op: str, v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor, v_merged: Tensor, s_merged: Tensor
) -> None:
    a = Argument(op, "v_a", v_a)
    check_dim(a, 3, "[tokens, heads, head_dim]")
    check_dtype_in(a, _DTYPES)
    check_contiguous(a)
    _check_like(Argument(op, "s_a", s_a), v_a, is_value=False)
    _check_like(Argument(op, "v_b", v_b), v_a, is_value=True)
    _check_like(Argument(op, "s_b", s_b), v_a, is_value=False)
    _check_like(Argument(op, "v_merged", v_merged), v_a, is_value=True)
    _check_like(Argument(op, "s_merged", s_merged), v_a, is_value=False)
    if v_a.size(2) == 0 and s_a.numel() > 0:
        fail(op, "v_a.size(2)", "at least 1", 0)


def _check_like(a: Argument, v_a: Tensor, is_value: bool) -> None:
    """``a`` has the shape of v_a, or that shape without its last dimension."""
    check_dim(a, 3 if is_value else 2, "[tokens, heads, head_dim]" if is_value else "[tokens, heads]")
    for d in range(a.tensor.dim()):
        check_size(a, d, v_a.size(d), "that of v_a")
    check_dtype(a, v_a.dtype if is_value else torch.float32, "dtype of v_a" if is_value else "a log-sum-exp")
    check_device(a, v_a.device, "device of v_a")
    check_contiguous(a)


def _compute(
    base: float, v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor, v_merged: Tensor, s_merged: Tensor
) -> None:
    s = torch.stack((s_a, s_b))
    highest = torch.maximum(s_a, s_b)
    is_empty = highest == -torch.inf
    weights = torch.exp((s - highest.masked_fill(is_empty, 0)) * math.log(base))
    total = weights.sum(0)
    shares = (weights / total.masked_fill(is_empty, 1)).unsqueeze(-1)
    values = torch.stack((v_a.float(), v_b.float())) * shares
    v_merged.copy_(values.masked_fill(shares == 0, 0).sum(0))
    s_merged.copy_(highest + torch.log(total) / math.log(base))


@fakes("merge_state")
def _merge_state_fake(
    v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor, v_merged: Tensor, s_merged: Tensor
) -> None:
    _check("merge_state", v_a, s_a, v_b, s_b, v_merged, s_merged)


@implements("merge_state")
def _merge_state_cpu(
    v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor, v_merged: Tensor, s_merged: Tensor
) -> None:
    _check("merge_state", v_a, s_a, v_b, s_b, v_merged, s_merged)
    _compute(2.0, v_a, s_a, v_b, s_b, v_merged, s_merged)


@fakes("merge_state_v2")
def _merge_state_v2_fake(
    v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor, v_merged: Tensor, s_merged: Tensor
) -> None:
    _check("merge_state_v2", v_a, s_a, v_b, s_b, v_merged, s_merged)


@implements("merge_state_v2")
def _merge_state_v2_cpu(
    v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor, v_merged: Tensor, s_merged: Tensor
) -> None:
    _check("merge_state_v2", v_a, s_a, v_b, s_b, v_merged, s_merged)
    s_a, s_b = (s.masked_fill(s == torch.inf, -torch.inf) for s in (s_a, s_b))
    _compute(math.e, v_a, s_a, v_b, s_b, v_merged, s_merged)
