"""awq_dequantize on the linear layers of Qwen3-32B-AWQ, groups of 128."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sgl_kernel
import torch
from torch import Tensor

from ._bench import BF16, DEVICE, Case

__all__ = ["FAMILY", "cases"]

FAMILY = "awq"
LAYERS = {"qkv": (10240, 5120), "o": (5120, 8192), "gate_up": (51200, 5120), "down": (5120, 25600)}


def cases() -> Iterator[Case]:
    for layer, (columns, rows) in LAYERS.items():
        yield case(layer, rows, columns, torch.float16, is_core=True)
        yield case(layer, rows, columns, BF16)


def case(layer: str, rows: int, columns: int, dtype: torch.dtype, **kinds: bool) -> Case:
    groups = rows // 128

    def words(height: int) -> Tensor:
        return torch.randint(-(2**31), 2**31, (height, columns // 8), device=DEVICE).int()

    def make() -> tuple[Any, ...]:
        return words(rows), torch.rand(groups, columns, device=DEVICE).to(dtype), words(groups)

    def call(qweight: Tensor, scales: Tensor, qzeros: Tensor) -> None:
        sgl_kernel.awq_dequantize(qweight, scales, qzeros)

    suffix = " bf16" if dtype == BF16 else ""
    return Case(
        f"awq_dequantize {layer} n{columns} k{rows}{suffix}", rows * columns * 5 // 2, make, call, **kinds
    )
