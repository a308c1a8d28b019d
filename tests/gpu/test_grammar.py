from __future__ import annotations

import pytest
import sgl_kernel
import torch
from torch import Tensor

from ._compare import assert_same_bits
from ._tensors import DEVICE, embed_rows, name, randn

apply = sgl_kernel.grammar.apply_token_bitmask_inplace_cuda
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def random_mask(rows: int, words: int) -> Tensor:
    """Words with no bit, with all and with any."""
    mask = torch.randint(-(2**31), 2**31, (rows, words), device=DEVICE)
    kind = torch.randint(3, (rows, words), device=DEVICE)
    return torch.where(kind == 0, 0, torch.where(kind == 1, -1, mask)).to(torch.int32)


def masked(logits: Tensor, mask: Tensor, rows: list[int]) -> Tensor:
    token = torch.arange(min(logits.size(1), 32 * mask.size(1)), device=DEVICE)
    is_forbidden = (mask[:, token // 32].long() >> (token % 32)) & 1 == 0
    expected = logits.clone()
    for row in rows:
        expected[row, : token.numel()] = logits[row, : token.numel()].masked_fill(
            is_forbidden[row], -torch.inf
        )
    return expected


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("vocabulary", [1, 7, 31, 32, 33, 64, 1000, 1023, 32000, 151936])
@pytest.mark.parametrize("rows", [0, 1, 3, pytest.param(5, marks=pytest.mark.sanitizer), 65])
def test_all_rows(rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    values, mask = randn(rows, vocabulary, dtype=dtype), random_mask(rows, (vocabulary + 31) // 32)
    logits = values.clone()
    apply(logits, mask)
    assert_same_bits(logits, masked(values, mask, list(range(rows))))


@pytest.mark.parametrize("pad", [0, 1, 8])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_strided_rows(dtype: torch.dtype, offset: int, pad: int) -> None:
    values, mask = randn(5, 1000, dtype=dtype), random_mask(5, 70)[:, 3:39]
    logits = embed_rows(values, pad=pad, offset=offset)
    apply(logits.view, mask)
    assert_same_bits(logits.view, masked(values, mask, list(range(5))))
    logits.assert_guards_intact()


@pytest.mark.parametrize("kind", ["list", "int32", "int64"])
def test_some_rows(kind: str) -> None:
    """Repeated indices do no harm, those outside are skipped."""
    values, mask, rows = randn(6, 500, dtype=torch.float32), random_mask(6, 16), [4, 0, 4, -1, 6, 2**31 - 1]
    logits = values.clone()
    apply(
        logits,
        mask,
        rows if kind == "list" else torch.tensor(rows, dtype=getattr(torch, kind), device=DEVICE),
    )
    assert_same_bits(logits, masked(values, mask, [0, 4]))
    apply(logits, mask, [])
    assert_same_bits(logits, masked(values, mask, [0, 4]))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("vocabulary", "words"), [(1000, 3), (40, 9), (50, 0), (0, 2), (100, 4)])
def test_tokens_without_a_word_keep_their_logits(vocabulary: int, words: int, dtype: torch.dtype) -> None:
    values, mask = randn(3, vocabulary, dtype=dtype), random_mask(3, words)
    logits = values.clone()
    apply(logits, mask)
    assert_same_bits(logits, masked(values, mask, [0, 1, 2]))


def test_one_dimension_and_nan() -> None:
    logits = torch.full((70,), torch.nan, device=DEVICE)
    apply(logits, torch.tensor([0, -1, 1], dtype=torch.int32, device=DEVICE))
    assert logits[:32].isneginf().all()
    assert logits[32:65].isnan().all()
    assert logits[65:].isneginf().all()


def test_rows_beyond_2_to_the_32_elements() -> None:
    stride, vocabulary = (1 << 32) + 64, 1000
    buffer = torch.zeros(stride + vocabulary, dtype=torch.float16, device=DEVICE)
    logits, mask = buffer.as_strided((2, vocabulary), (stride, 1)), random_mask(2, 32)
    expected = masked(logits.clone(), mask, [0, 1])
    apply(logits, mask)
    assert_same_bits(logits.contiguous(), expected)
