"""Filters and samplers over the vocabularies of Qwen3 and Llama, of softmax probabilities.

A sampler in a captured graph draws with a fixed seed; drawing it from the generator is host work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from sgl_kernel import sampling
from torch import Tensor

from ._bench import Case, randn

__all__ = ["FAMILY", "cases"]

FAMILY = "sampling"
QWEN3 = 151936
LLAMA3 = 128256
TOP_K, TOP_P, MIN_P = 50, 0.9, 0.05


def cases() -> Iterator[Case]:
    for rows in (1, 16, 128):
        for name in CALLS:
            yield case(name, rows, QWEN3, is_core=name in CORE)
    for rows, vocabulary in ((1, LLAMA3), (64, LLAMA3), (989, 32000), (128, 32001)):
        for name in CORE:
            yield case(name, rows, vocabulary)


def joint(probs: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    return sampling.top_k_top_p_sampling_from_probs(probs, top_k, top_p, filter_apply_order="joint")


CALLS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "top_k_top_p joint": joint,
    "top_p_renorm": lambda probs, top_k, top_p, min_p: sampling.top_p_renorm_probs(probs, top_p),
    "top_k_renorm": lambda probs, top_k, top_p, min_p: sampling.top_k_renorm_probs(probs, top_k),
    "min_p": lambda probs, top_k, top_p, min_p: sampling.min_p_sampling_from_probs(probs, min_p),
    "top_p": lambda probs, top_k, top_p, min_p: sampling.top_p_sampling_from_probs(probs, top_p),
    "top_k_mask_logits": lambda probs, top_k, top_p, min_p: sampling.top_k_mask_logits(probs, top_k),
}
CORE = ("top_k_top_p joint", "top_p_renorm", "top_k_renorm", "min_p")


def eager(name: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """By sorting, as one writes it in torch."""

    def run(probs: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
        if name == "min_p":
            kept = torch.where(probs >= min_p[:, None] * probs.amax(-1, keepdim=True), probs, 0.0)
            return draw(kept)
        ordered, order = probs.sort(-1, descending=True)
        is_kept = torch.ones_like(ordered, dtype=torch.bool)
        if "top_k" in name:
            is_kept &= torch.arange(ordered.size(-1), device=probs.device) < top_k[:, None]
        if "top_p" in name:
            is_kept &= ordered.cumsum(-1) - ordered < top_p[:, None]
        kept = torch.zeros_like(probs).scatter_(-1, order, torch.where(is_kept, ordered, 0.0))
        return kept / kept.sum(-1, keepdim=True) if "renorm" in name else draw(kept)

    return run


def draw(weights: Tensor) -> Tensor:
    """One token per row: the race of exponentials, which needs no host."""
    return (weights / torch.empty_like(weights).exponential_()).argmax(-1)


def case(name: str, rows: int, vocabulary: int, **kinds: bool) -> Case:
    def make() -> tuple[Any, ...]:
        probs = randn(rows, vocabulary, dtype=torch.float32).mul_(2).softmax(-1)
        fill = {"device": probs.device}
        return (
            probs,
            torch.full((rows,), TOP_K, dtype=torch.int32, **fill),
            torch.full((rows,), TOP_P, **fill),
            torch.full((rows,), MIN_P, **fill),
        )

    is_filter = "renorm" in name or "mask" in name
    peer = None if name == "top_k_mask_logits" else eager(name)
    moved = (2 if is_filter else 1) * rows * vocabulary * 4
    return Case(f"{name} m{rows} v{vocabulary}", moved, make, CALLS[name], peer, **kinds)
