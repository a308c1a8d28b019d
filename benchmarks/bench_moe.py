"""topk_softmax, moe_fused_gate and moe_align_block_size: the way of a token to its experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sgl_kernel
import torch
from torch import Tensor

from ._bench import DEVICE, Case, randn

__all__ = ["FAMILY", "cases"]

FAMILY = "moe"
TOKENS = (1, 16, 256, 4096)
EXPERTS, TOPK, BLOCK = 128, 8, 64


def cases() -> Iterator[Case]:
    for tokens in TOKENS:
        yield softmax(tokens, EXPERTS, is_core=True)
        yield align(tokens, is_core=True)
    for tokens in TOKENS:
        yield group_gate(tokens)
    yield softmax(4096, 512)
    for tokens in (1024, 2048, 2049, 16384):  # one launch up to 2048 tokens
        yield align(tokens)


def int32(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device=DEVICE)


def softmax(tokens: int, experts: int, **kinds: bool) -> Case:
    def make() -> tuple[Any, ...]:
        weights = torch.empty(tokens, TOPK, device=DEVICE)
        return weights, int32(tokens, TOPK), randn(tokens, experts, dtype=torch.float32), True

    def eager(weights: Tensor, ids: Tensor, logits: Tensor, renormalize: bool) -> None:
        best, best_ids = torch.softmax(logits, -1).topk(TOPK)
        weights.copy_(best / best.sum(-1, keepdim=True))
        ids.copy_(best_ids)

    name = f"topk_softmax m{tokens} e{experts} k{TOPK}"
    return Case(name, tokens * experts * 4, make, sgl_kernel.topk_softmax, eager, **kinds)


def group_gate(tokens: int) -> Case:
    def make() -> tuple[Any, ...]:
        return randn(tokens, 256, dtype=torch.float32), randn(256, dtype=torch.float32), 8, 4, 8, 0, 2.5

    return Case(f"moe_fused_gate m{tokens} e256 k8", tokens * 256 * 4, make, sgl_kernel.moe_fused_gate)


def align(tokens: int, **kinds: bool) -> Case:
    def make() -> tuple[Any, ...]:
        ids = torch.rand(tokens, EXPERTS, device=DEVICE).topk(TOPK).indices.int()
        size = tokens * TOPK + (EXPERTS + 1) * (BLOCK - 1)
        outputs = int32(size), int32((size + BLOCK - 1) // BLOCK), int32(1), int32(EXPERTS + 2)
        return ids, EXPERTS + 1, BLOCK, *outputs, True

    name = f"moe_align_block_size m{tokens} e{EXPERTS} k{TOPK}"
    return Case(name, tokens * TOPK * 8, make, sgl_kernel.moe_align_block_size, **kinds)
