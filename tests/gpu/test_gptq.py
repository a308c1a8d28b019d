"""Against float64. A weight is rounded once to fp16 in the tiles, the sum once to fp16."""

from __future__ import annotations

import pytest
import sgl_kernel
import torch
from torch import Tensor

from ._compare import assert_close, assert_same_bits
from ._tensors import DEVICE, rand, randn

BITS = (2, 3, 4, 8)
TOKENS = (0, 1, 2, 3, 4, 5, 17, 33, 64, 65, 127, 129, 300)
SHAPES = [(1024, 160, 8), (4096, 512, 32), (2560, 1056, 1)]  # in, out, groups


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, device=DEVICE).int()


def unpack_rows(packed: Tensor, bits: int) -> Tensor:
    """[rows * bits / 32, columns] to [rows, columns], bit by bit."""
    position = torch.arange(32, device=DEVICE).view(1, 32, 1)
    stream = ((packed.unsqueeze(1) >> position) & 1).reshape(-1, bits, packed.size(1))
    return (stream << torch.arange(bits, device=DEVICE).view(1, bits, 1)).sum(1)


class Weights:
    def __init__(self, bits: int, rows: int, columns: int, groups: int) -> None:
        self.bits = bits
        self.qweight = words(rows * bits // 32, columns)
        self.qzeros = words(groups, columns * bits // 32)
        self.scales = rand(groups, columns, dtype=torch.float16, low=0.5, high=1.0) * 2.0 ** (-bits - 3)

    def dense(self, group: Tensor) -> Tensor:
        q = unpack_rows(self.qweight, self.bits)
        zeros = unpack_rows(self.qzeros.t().contiguous(), self.bits).t() + 1
        return (q - zeros[group]).double() * self.scales.double()[group]

    def gemm(self, a: Tensor, g_idx: Tensor, use_shuffle: bool) -> Tensor:
        return sgl_kernel.gptq_gemm(a, self.qweight, self.qzeros, self.scales, g_idx, use_shuffle, self.bits)


def none() -> Tensor:
    return torch.empty(0, dtype=torch.int32, device=DEVICE)


def check(out: Tensor, a: Tensor, dense: Tensor) -> None:
    # 2^-11 of each product for the weight's rounding, as much again for fp32 sums of up to 4096 terms.
    slack = (a.double().abs() @ dense.abs()) * 2.0**-10
    assert_close(out, a.double() @ dense, slack=slack, label="gptq_gemm")


def small(tokens: int) -> list[pytest.MarkDecorator]:
    return [pytest.mark.sanitizer] if tokens in (1, 3, 65) else []


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [pytest.param(m, marks=small(m)) for m in TOKENS])
@pytest.mark.parametrize(("rows", "columns", "groups"), SHAPES)
def test_consecutive_groups(rows: int, columns: int, groups: int, tokens: int, bits: int) -> None:
    weights = Weights(bits, rows, columns, groups)
    a = randn(tokens, rows, dtype=torch.float16)
    group = torch.arange(rows, device=DEVICE) // (rows // groups)
    check(weights.gemm(a, none(), False), a, weights.dense(group))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [pytest.param(m, marks=small(m)) for m in (1, 3, 4, 65)])
def test_groups_of_rows(tokens: int, bits: int) -> None:
    weights = Weights(bits, 1024, 160, 9)
    g_idx = torch.randint(9, (1024,), device=DEVICE).int()
    a = randn(tokens, 1024, dtype=torch.float16)
    check(weights.gemm(a, g_idx, False), a, weights.dense(g_idx.long()))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [1, 4, 17])
def test_small_groups(tokens: int, bits: int) -> None:
    """Of 24 rows: a unit of 32 holds several."""
    weights = Weights(bits, 96, 96, 4)
    a = randn(tokens, 96, dtype=torch.float16)
    check(weights.gemm(a, none(), True), a, weights.dense(torch.arange(96, device=DEVICE) // 24))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [pytest.param(m, marks=small(m)) for m in (1, 3, 65)])
def test_shuffled(tokens: int, bits: int) -> None:
    rows = 1024
    weights = Weights(bits, rows, 160, 8)
    g_idx = (torch.arange(rows, device=DEVICE) // 128)[torch.randperm(rows, device=DEVICE)]
    perm = g_idx.argsort().int()
    a = randn(tokens, rows, dtype=torch.float16)
    dense = weights.dense(g_idx)
    expected = weights.qweight.cpu()
    sgl_kernel.gptq_shuffle(expected, perm.cpu(), bits)
    sgl_kernel.gptq_shuffle(weights.qweight, perm, bits)
    assert_same_bits(weights.qweight.cpu(), expected)
    check(weights.gemm(a, perm, True), a, dense)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_rows_that_fill_no_unit(tokens: int, bits: int) -> None:
    weights = Weights(bits, 80, 48, 1)
    a = randn(tokens, 80, dtype=torch.float16)
    check(weights.gemm(a, none(), False), a, weights.dense(torch.zeros(80, device=DEVICE).long()))


@pytest.mark.parametrize("offset", [0, 1, 8])
@pytest.mark.parametrize("tokens", [2, 65])
def test_strided_activations(tokens: int, offset: int) -> None:
    weights = Weights(4, 512, 128, 4)
    a = randn(tokens, 512 + 40, dtype=torch.float16)[:, offset : offset + 512]
    check(weights.gemm(a, none(), False), a, weights.dense(torch.arange(512, device=DEVICE) // 128))


@pytest.mark.sanitizer
@pytest.mark.parametrize("tokens", [1, 65])
@pytest.mark.parametrize("use_shuffle", [False, True])
def test_indices_that_do_not_exist_count_as_zeros(tokens: int, use_shuffle: bool) -> None:
    weights = Weights(4, 512, 128, 4)
    a = randn(tokens, 512, dtype=torch.float16)
    indices = torch.arange(512, device=DEVICE).int()
    indices = indices if use_shuffle else indices // 128
    bad = torch.tensor([5, 100, 511], device=DEVICE)
    dense = weights.dense(torch.arange(512, device=DEVICE) // 128)
    dense[bad] = 0
    indices[bad] = torch.tensor([-1, 512, 2**31 - 1], device=DEVICE).int()
    check(weights.gemm(a, indices, use_shuffle), a, dense)


@pytest.mark.parametrize("tokens", [1, 4, 65])
def test_the_same_bits_every_time(tokens: int) -> None:
    weights = Weights(4, 4096, 512, 32)
    a = randn(tokens, 4096, dtype=torch.float16)
    expected = weights.gemm(a, none(), False)
    for _ in range(100):
        assert torch.equal(weights.gemm(a, none(), False), expected)
