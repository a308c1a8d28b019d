"""The sampling operators on the CPU, by sorting: the same kept sets and tokens as the CUDA kernels.

What is kept is ``x >= threshold``, where ties stand together. A token is drawn by inverse CDF in index order
over probabilities in fixed point: integers, so their sums and the token are the same everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw", "mask", "min_p_threshold", "random_bits", "renormalize", "threshold"]

_WORD = 0xFFFFFFFF
_UINT64 = 0xFFFFFFFFFFFFFFFF


def clean(probs: Tensor) -> Tensor:
    """NaN and negative probabilities count as 0."""
    return torch.where(probs > 0, probs, 0.0)


def threshold(values: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> tuple[Tensor, Tensor]:
    """The least value of each row that is kept, and whether any is cut off.

    Keeps x if fewer than ``top_k`` values are above it and their sum is below ``top_p``, the largest value in
    any case; zeros never count.
    """
    rows, size = values.shape
    is_cut = torch.zeros(rows, dtype=torch.bool)
    ordered = values.sort(-1, descending=True).values
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    above = torch.where(is_new, torch.arange(size), 0).cummax(-1).values  # entries above each value
    is_kept = ordered > 0
    if top_k is not None:
        k = top_k.long().clamp(min=1)[:, None]
        is_kept &= (above < k) | (k >= size)
        is_cut |= (k < size)[:, 0]
    if top_p is not None:
        sums = ordered.double().cumsum(-1)
        mass = torch.where(above > 0, sums.gather(-1, (above - 1).clamp(min=0)), 0.0)
        p = top_p.double()[:, None]
        is_kept &= (mass < p) | (above == 0) | (p >= 1)
        is_cut |= ~(p >= 1)[:, 0]
    least = torch.where(is_kept, ordered, torch.inf).amin(-1)
    return least, is_cut & is_kept.any(-1)


def min_p_threshold(probs: Tensor, min_p: Tensor) -> Tensor:
    largest = probs.amax(-1)
    least = torch.minimum(min_p * largest, largest)
    return torch.where(least > 0, least, 0.0)


def renormalize(probs: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> Tensor:
    probs = clean(probs)
    least, is_cut = threshold(probs, top_k, top_p)
    kept = torch.where((probs >= least[:, None]) | ~is_cut[:, None], probs, 0.0)
    total = kept.double().sum(-1, keepdim=True).float()
    return torch.where(kept > 0, kept / total, 0.0)


def mask(logits: Tensor, top_k: Tensor) -> Tensor:
    keys = _ordered(logits)
    least, is_cut = threshold(keys, top_k, None)
    return torch.where((keys >= least[:, None]) | ~is_cut[:, None], logits, -torch.inf)


def _ordered(logits: Tensor) -> Tensor:
    """Positive integers in the order of the values; 0 where there is none."""
    bits = (logits + 0.0).view(torch.int32).long()  # -0.0 + 0.0 is 0.0
    keys = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits) + (1 << 31)
    return torch.where(logits.isnan(), 0, keys).double()


def draw(probs: Tensor, least: Tensor, seed: int, offset: int) -> Tensor:
    """A token of each row among those of at least ``least``; row i takes the random bits of (offset, i)."""
    kept = torch.where(probs >= least[:, None], probs, 0.0)
    cumulative = fixed_point(kept, probs.amax(-1)).cumsum(-1)
    tokens = torch.empty(len(probs), dtype=torch.int32)
    for row, masses in enumerate(cumulative):
        total = int(masses[-1])
        target = random_bits(seed, offset, row) * total >> 64
        tokens[row] = int(torch.searchsorted(masses, target, right=True)) if total else 0
    return tokens


def fixed_point(probs: Tensor, largest: Tensor) -> Tensor:
    """Multiples of 2^-fraction of the last bit of the row's largest probability, rounded down."""
    fraction = min(20, 62 - 24 - (probs.size(-1) - 1).bit_length())
    significand, exponent = _parts(probs)
    shift = _parts(largest)[1][:, None] - exponent
    return (significand << fraction) >> shift.clamp(max=63)


def _parts(probs: Tensor) -> tuple[Tensor, Tensor]:
    """The 24-bit significand and the biased exponent, 1 of subnormals."""
    bits = probs.contiguous().view(torch.int32).long()
    exponent = bits >> 23
    significand = torch.where(exponent > 0, 1 << 23, 0) | bits & 0x7FFFFF
    return significand, exponent.clamp(min=1)


def random_bits(seed: int, offset: int, row: int) -> int:
    """64 random bits: the block of Philox that the offset, in 32-bit words, and the row select."""
    words = philox(seed, (offset & _UINT64) // 4, row)
    return words[1] << 32 | words[0]


def philox(key: int, block: int, stream: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)."""
    c0, c1, c2, c3 = block & _WORD, block >> 32, stream & _WORD, stream >> 32
    k0, k1 = key & _WORD, key >> 32 & _WORD
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            product1 >> 32 ^ c1 ^ k0,
            product1 & _WORD,
            product0 >> 32 ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return c0, c1, c2, c3
