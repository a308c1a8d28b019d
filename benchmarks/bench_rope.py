"""apply_rope_with_cos_sin_cache_inplace: heads of several models, views, the store to the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sgl_kernel import FusedSetKVBufferArg, apply_rope_with_cos_sin_cache_inplace
from torch import Tensor

from ._bench import BF16, DEVICE, Case, randn

__all__ = ["FAMILY", "cases"]

FAMILY = "rope"
MAX_POSITION = 40960


@dataclass(frozen=True)
class Shape:
    q_heads: int = 64
    k_heads: int = 8
    head_size: int = 128
    rotary_dim: int = 128
    is_neox: bool = True
    is_view: bool = False  # q and k are slices of one projection
    is_stored: bool = False  # keys and values also go to the cache

    def __str__(self) -> str:
        style = "neox" if self.is_neox else "interleaved"
        text = f"{style} m{{}} {self.q_heads}q{self.k_heads}k{self.head_size}"
        if self.rotary_dim != self.head_size:
            text += f" r{self.rotary_dim}"
        return text + " view" * self.is_view + " stored" * self.is_stored


def cases() -> Iterator[Case]:
    for tokens in (1, 16, 256, 4096):
        yield case(tokens, Shape(), is_core=True, is_compiled=tokens in (16, 4096))

    yield case(16384, Shape())
    others = (
        Shape(is_neox=False),
        Shape(is_view=True),
        Shape(64, 8, 64, 64, is_view=True, is_stored=True),
        Shape(32, 8, 128, 64),
        Shape(16, 8, 256, 128),
        Shape(40, 40),
        Shape(32, 4, 80, 80),
    )
    for shape in others:
        for tokens in (16, 4096):
            yield case(tokens, shape)


def make_inputs(tokens: int, shape: Shape) -> tuple[Any, ...]:
    q_width, k_width = shape.q_heads * shape.head_size, shape.k_heads * shape.head_size
    if shape.is_view:
        query, key, value = randn(tokens, q_width + 2 * k_width).split([q_width, k_width, k_width], -1)
    else:
        query, key, value = randn(tokens, q_width), randn(tokens, k_width), randn(tokens, k_width)
    angles = torch.rand(MAX_POSITION, shape.rotary_dim // 2, device=DEVICE) * 6.283
    cache = torch.cat((angles.cos(), angles.sin()), -1)
    positions = torch.randint(MAX_POSITION, (tokens,), device=DEVICE)
    fused = None
    if shape.is_stored:
        buffers = [torch.empty(2 * tokens, k_width, dtype=BF16, device=DEVICE) for _ in ("key", "value")]
        slot_of = torch.randperm(2 * tokens, device=DEVICE)[:tokens]
        fused = FusedSetKVBufferArg(value, *buffers, None, None, slot_of)
    return positions, query, key, cache, fused


def rotate(x: Tensor, cos: Tensor, sin: Tensor, shape: Shape) -> Tensor:
    x = x.reshape(x.size(0), -1, shape.head_size)
    head, tail = x[..., : shape.rotary_dim].float(), x[..., shape.rotary_dim :]
    if shape.is_neox:
        x1, x2 = head.chunk(2, -1)
        rotated = torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)
    else:
        x1, x2 = head[..., 0::2], head[..., 1::2]
        rotated = torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1).flatten(-2)
    return torch.cat((rotated.to(x.dtype), tail), -1)


def case(tokens: int, shape: Shape, **kinds: bool) -> Case:
    def call(positions: Tensor, query: Tensor, key: Tensor, cache: Tensor, fused: Any) -> None:
        apply_rope_with_cos_sin_cache_inplace(
            positions, query, key, shape.head_size, cache, shape.is_neox, fused
        )

    def eager(positions: Tensor, query: Tensor, key: Tensor, cache: Tensor, fused: Any) -> tuple[Tensor, ...]:
        cos, sin = cache[positions].unsqueeze(1).chunk(2, -1)
        query, key = rotate(query, cos, sin, shape), rotate(key, cos, sin, shape)
        if fused is not None:
            fused.k_buffer[fused.cache_loc] = key.flatten(1)
            fused.v_buffer[fused.cache_loc] = fused.value
        return query, key

    # In place, what is not rotated does not move; to the cache go whole keys and values.
    elements = 2 * (shape.q_heads + shape.k_heads) * shape.rotary_dim
    if shape.is_stored:
        elements += shape.k_heads * (4 * shape.head_size - shape.rotary_dim)
    angles = shape.rotary_dim * torch.float32.itemsize + torch.int64.itemsize  # of a token, with its position
    moved = tokens * (elements * BF16.itemsize + angles)
    name = f"rope {shape}".format(tokens)
    return Case(name, moved, lambda: make_inputs(tokens, shape), call, eager, **kinds)
