"""merge_state_v2 and merge_state on 64 heads of 128."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import sgl_kernel
import torch
from torch import Tensor

from ._bench import Case, randn

__all__ = ["FAMILY", "cases"]

FAMILY = "merge"
HEADS, DIM = 64, 128


def cases() -> Iterator[Case]:
    for tokens in (16, 4096):
        yield case("merge_state_v2", f"v2 m{tokens} h64 d128", tokens, is_core=True, is_compiled=True)
    for tokens in (1, 256, 16384):
        yield case("merge_state_v2", f"v2 m{tokens} h64 d128", tokens)
    yield case("merge_state", "m4096 h64 d128", 4096)


def case(op: str, label: str, tokens: int, **kinds: bool) -> Case:
    function: Callable[..., object] = getattr(sgl_kernel, op)

    def make() -> tuple[Any, ...]:
        v_a, v_b = randn(tokens, HEADS, DIM), randn(tokens, HEADS, DIM)
        s_a, s_b = (randn(tokens, HEADS, dtype=torch.float32) for _ in range(2))
        return v_a, s_a, v_b, s_b, torch.empty_like(v_a), torch.empty_like(s_a)

    def eager(v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor, v: Tensor, s: Tensor) -> None:
        torch.logaddexp(s_a, s_b, out=s)
        v.copy_(v_a * (s_a - s).exp().unsqueeze(-1) + v_b * (s_b - s).exp().unsqueeze(-1))

    moved = 3 * tokens * HEADS * DIM * 2
    return Case(label, moved, make, function, eager if op == "merge_state_v2" else None, **kinds)
