"""Exact: an integer difference times a scale, rounded once."""

from __future__ import annotations

import pytest
import sgl_kernel
import torch
from torch import Tensor

from ._compare import assert_same_bits
from ._tensors import DEVICE, HALVES, name, rand

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SHAPES = [  # rows, columns, groups
    *(
        pytest.param(*shape, marks=pytest.mark.sanitizer)
        for shape in ((1, 8, 1), (7, 24, 1), (64, 1032, 4), (56, 1096, 8), (96, 2056, 2))
    ),
    *((128, 8, 1), (18944, 128, 1), (5120, 10240, 40), (8192, 5120, 64), (2048, 4096, 128), (1000, 520, 40)),
]


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, device=DEVICE).int()


def unpack(packed: Tensor) -> Tensor:
    out = torch.empty(*packed.shape, 8, dtype=torch.int32, device=DEVICE)
    for t, column in enumerate(ORDER):
        out[..., column] = (packed >> (4 * t)) & 15
    return out.flatten(1)


def check(qweight: Tensor, scales: Tensor, qzeros: Tensor) -> None:
    out = sgl_kernel.awq_dequantize(qweight, scales, qzeros)
    group_size = qweight.size(0) // scales.size(0)
    zeros = unpack(qzeros).repeat_interleave(group_size, 0)
    factors = scales.repeat_interleave(group_size, 0)
    expected = ((unpack(qweight) - zeros).float() * factors.float()).to(scales.dtype)
    assert_same_bits(out, expected)


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize(("rows", "columns", "groups"), SHAPES)
def test_dequantize(rows: int, columns: int, groups: int, dtype: torch.dtype) -> None:
    scales = rand(groups, columns, dtype=dtype, low=0.001, high=0.1)
    check(words(rows, columns // 8), scales, words(groups, columns // 8))


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", HALVES, ids=name)
def test_every_scale(dtype: torch.dtype) -> None:
    """All finite representations, subnormal ones and negative ones too."""
    scales = torch.arange(-(1 << 15), 1 << 15, device=DEVICE).to(torch.int16).view(dtype)
    scales = scales.where(scales.isfinite(), torch.ones_like(scales)).reshape(8, 8192)
    check(words(64, 1024), scales, words(8, 1024))


@pytest.mark.sanitizer
def test_scales_off_a_vector() -> None:
    scales = rand(1 + 4 * 128, dtype=torch.float16, low=0.001, high=0.1)[1:].view(4, 128)
    check(words(64, 16), scales, words(4, 16))
