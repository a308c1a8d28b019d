"""gptq_marlin_gemm: the linear layers of Qwen3-32B in 4 bits (AWQ, groups of 128), decode to prefill."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sgl_kernel
import torch
from sgl_kernel.scalar_type import ScalarType, scalar_types
from torch import Tensor

from ._bench import BF16, DEVICE, Case, randn

__all__ = ["FAMILY", "cases"]

FAMILY = "marlin_gemm"
GROUP_SIZE = 128
LAYERS = {"qkv": (10240, 5120), "o": (5120, 8192), "gate_up": (51200, 5120), "down": (5120, 25600)}
ROWS = (1, 8, 16, 32, 64, 128, 256, 1024, 4096)


def cases() -> Iterator[Case]:
    for layer, (size_n, size_k) in LAYERS.items():
        for m in ROWS:
            yield case(layer, m, size_n, size_k, scalar_types.uint4, is_core=True)
    for type_ in (scalar_types.uint4b8, scalar_types.uint8b128, scalar_types.float8_e4m3fn):
        for m in (1, 16, 64, 1024):
            yield case("gate_up", m, *LAYERS["gate_up"], type_)
    for m in (1, 1024):
        yield case("down", m, *LAYERS["down"], scalar_types.uint4, torch.float16)


def case(
    layer: str,
    m: int,
    size_n: int,
    size_k: int,
    type_: ScalarType,
    dtype: torch.dtype = BF16,
    *,
    is_core: bool = False,
) -> Case:
    groups, words = size_k // GROUP_SIZE, size_n * type_.size_bits // 2
    has_zeros = type_ == scalar_types.uint4

    def random_words(*shape: int) -> Tensor:
        return torch.randint(-(2**31), 2**31, shape, device=DEVICE).int()

    def make() -> tuple[Any, ...]:
        empty = torch.empty(0, dtype=torch.int32, device=DEVICE)
        return (
            randn(m, size_k, dtype=dtype),
            random_words(size_k // 16, words),
            (torch.rand(groups, size_n, device=DEVICE) * 0.01).to(dtype),
            random_words(groups, size_n // 8) if has_zeros else empty,
            empty,
            torch.zeros(512, dtype=torch.int32, device=DEVICE),
        )

    def call(
        a: Tensor, weight: Tensor, scales: Tensor, zeros: Tensor, none: Tensor, workspace: Tensor
    ) -> None:
        operands = (a, None, weight, scales, None, zeros, none, none, workspace)
        sgl_kernel.gptq_marlin_gemm(*operands, type_, m, size_n, size_k, use_fp32_reduce=True)

    suffix = ("" if has_zeros else f" {type_}") + ("" if dtype == BF16 else " fp16")
    moved = (
        size_k // 16 * words * 4 + groups * size_n * (5 if has_zeros else 4) // 2 + 2 * m * (size_n + size_k)
    )
    return Case(f"{layer} n{size_n} k{size_k} m{m}{suffix}", moved, make, call, is_core=is_core)
