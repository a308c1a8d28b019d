"""silu_and_mul, gelu_and_mul and gelu_tanh_and_mul on rows of several models' widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import sgl_kernel
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from ._bench import BF16, DEVICE, Case, randn

__all__ = ["FAMILY", "cases"]

FAMILY = "activation"
QWEN3_32B = 25600
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu_and_mul": silu,
    "gelu_and_mul": gelu,
    "gelu_tanh_and_mul": partial(gelu, approximate="tanh"),
}


def cases() -> Iterator[Case]:
    for tokens in (1, 16, 256, 4096):
        yield case("silu_and_mul", tokens, QWEN3_32B, is_core=True, is_compiled=tokens in (16, 4096))

    for op in ("gelu_and_mul", "gelu_tanh_and_mul"):
        for tokens in (1, 16, 256, 4096):
            yield case(op, tokens, QWEN3_32B)
    for width in (768, 1028, 3072, 14336):  # 1028: rows of 16 bytes whose second half is aligned to 8
        for tokens in (16, 4096):
            yield case("silu_and_mul", tokens, width)
    yield case("silu_and_mul", 16384, 14336)
    for dtype in (torch.float16, torch.float32):
        yield case("silu_and_mul", 4096, 14336, dtype)


def case(op: str, tokens: int, width: int, dtype: torch.dtype = BF16, **kinds: bool) -> Case:
    function: Callable[..., object] = getattr(sgl_kernel, op)
    gate = GATES[op]

    def make() -> tuple[Any, ...]:
        out = torch.empty(tokens, width, dtype=dtype, device=DEVICE)
        return randn(tokens, 2 * width, dtype=dtype), out

    def call(x: Tensor, out: Tensor) -> None:
        function(x, out)

    def eager(x: Tensor, out: Tensor) -> Tensor:
        return gate(x[:, :width]) * x[:, width:]

    suffix = {BF16: "", torch.float16: " fp16", torch.float32: " fp32"}[dtype]
    moved = 3 * tokens * width * dtype.itemsize
    return Case(f"{op} m{tokens} d{width}{suffix}", moved, make, call, eager, **kinds)
