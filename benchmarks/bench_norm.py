"""rmsnorm and fused_add_rmsnorm, plain and gemma: decode to prefill rows, head-dim rows, odd sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import sgl_kernel
import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from ._bench import BF16, DEVICE, Case, randn

__all__ = ["FAMILY", "cases"]

FAMILY = "norm"
EPS = 1e-6
QWEN3_32B = 5120
HEAD_ROWS = 72  # of a token: 64 query and 8 key heads, each normalised over 128


def cases() -> Iterator[Case]:
    for tokens in (1, 16, 256, 4096, 16384):
        is_compiled = tokens in (16, 4096)
        for op in ("rmsnorm", "fused_add_rmsnorm"):
            yield case(op, tokens, QWEN3_32B, is_core=True, is_compiled=is_compiled)
    yield case("rmsnorm", 4096 * HEAD_ROWS, 128, is_core=True, is_compiled=True)

    for tokens in (1, 16, 256):
        yield case("rmsnorm", tokens * HEAD_ROWS, 128)
    for head_size in (64, 256):
        yield case("rmsnorm", 4096 * HEAD_ROWS, head_size)
    for hidden in (1024, 2048, 4096, 8192, 16384):
        for op in ("rmsnorm", "fused_add_rmsnorm"):
            yield case(op, 4096, hidden)
    for hidden in (111, 500, 5121, 8191):
        yield case("rmsnorm", 4096, hidden)
    yield case("fused_add_rmsnorm", 4096, 5121)
    for op in ("gemma_rmsnorm", "gemma_fused_add_rmsnorm"):
        for tokens in (16, 4096):
            yield case(op, tokens, 3072)
    yield case("rmsnorm", 4096, QWEN3_32B, torch.float16)
    yield case("fused_add_rmsnorm", 4096, QWEN3_32B, torch.float16)


def case(op: str, tokens: int, hidden: int, dtype: torch.dtype = BF16, **kinds: bool) -> Case:
    is_fused = "fused" in op
    function: Callable[..., object] = getattr(sgl_kernel, op)
    offset = 1.0 if op.startswith("gemma") else 0.0

    def make() -> tuple[Any, ...]:
        x, weight = randn(tokens, hidden, dtype=dtype), randn(hidden, dtype=dtype)
        if is_fused:
            return x, randn(tokens, hidden, dtype=dtype), weight
        return x, torch.empty(tokens, hidden, dtype=dtype, device=DEVICE), weight

    def call(x: Tensor, other: Tensor, weight: Tensor) -> None:
        if is_fused:
            function(x, other, weight, EPS)
        else:
            function(x, weight, EPS, out=other)

    def eager(x: Tensor, other: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        factor = weight + offset if offset else weight
        if not is_fused:
            return (rms_norm(x, (hidden,), factor, EPS),)
        total = x + other
        return rms_norm(total, (hidden,), factor, EPS), total

    suffix = "" if dtype == BF16 else " fp16"
    moved = (4 if is_fused else 2) * tokens * hidden * dtype.itemsize
    return Case(f"{op} m{tokens} d{hidden}{suffix}", moved, make, call, eager, **kinds)
