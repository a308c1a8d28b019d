"""Inputs for the GPU tests: random values, and tensors inside larger poisoned buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._compare import bits

__all__ = ["DEVICE", "HALVES", "Embedded", "embed", "embed_rows", "name", "rand", "randn"]

DEVICE = "cuda"
HALVES = (torch.float16, torch.bfloat16)

# A quiet NaN with an unusual payload for each dtype: as input it spoils any result that read it, as output it
# stands out where nothing was written.
_POISON = {torch.float16: 0x7EA5, torch.bfloat16: 0x7FE5, torch.float32: 0x7FE5A5A5}
_GUARD = 64  # poisoned elements behind the last one


def name(value: object) -> str | None:
    """A short test id for a dtype; pytest's own for anything else."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def randn(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype)


def rand(*shape: int, dtype: torch.dtype, low: float, high: float) -> Tensor:
    return (torch.rand(shape, device=DEVICE) * (high - low) + low).to(dtype)


@dataclass
class Embedded:
    """A view of a larger buffer whose other elements are poisoned."""

    view: Tensor
    buffer: Tensor

    def assert_guards_intact(self) -> None:
        """Fails when an element of the buffer that is not part of the view was written."""
        outside = self.buffer.clone()
        poison = _POISON[outside.dtype]
        representation = outside.view(bits(outside).dtype)
        representation.as_strided(self.view.shape, self.view.stride(), self.view.storage_offset()).fill_(
            poison
        )
        written = (representation != poison).nonzero().flatten().tolist()
        assert not written, f"{len(written)} elements outside the tensor were written, at {written[:8]}"


def embed(
    values: Tensor | None, shape: Sequence[int], strides: Sequence[int], offset: int, dtype: torch.dtype
) -> Embedded:
    """A tensor of that geometry in a poisoned buffer; holds ``values``, or poison when they are None."""
    extent = (
        sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
        if 0 not in shape
        else 0
    )
    count = offset + extent + _GUARD
    width = bits(torch.empty(0, dtype=dtype)).dtype
    buffer = torch.full((count,), _POISON[dtype], dtype=width, device=DEVICE).view(dtype)
    view = buffer.as_strided(tuple(shape), tuple(strides), offset)
    if values is not None:
        view.copy_(values)
    return Embedded(view, buffer)


def embed_rows(values: Tensor, *, pad: int = 0, offset: int = 0, poisoned: bool = False) -> Embedded:
    """``values`` [tokens, hidden] with ``pad`` elements between rows and ``offset`` before the first.

    ``poisoned`` leaves the values out: an output that has to be written.
    """
    tokens, hidden = values.shape
    contents = None if poisoned else values
    return embed(contents, (tokens, hidden), (hidden + pad, 1), offset, values.dtype)
