"""The layout is exact; its reference is the CPU path, which tests/wheel compares with the definition."""

from __future__ import annotations

import pytest
import sgl_kernel
import torch
from torch import Tensor

from ._compare import assert_same_bits
from ._tensors import DEVICE

SIZES = [
    *(pytest.param(k, n, marks=pytest.mark.sanitizer) for k, n in ((16, 64), (32, 128), (48, 320))),
    *((16, 1088), (128, 576), (5120, 1024), (1024, 5120)),
]


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, device=DEVICE).int()


def no_perm() -> Tensor:
    return torch.empty(0, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("size_k", "size_n"), SIZES)
def test_awq(size_k: int, size_n: int, bits: int) -> None:
    weights = words(size_k, size_n * bits // 32)
    expected = sgl_kernel.awq_marlin_repack(weights.cpu(), size_k, size_n, bits)
    assert_same_bits(sgl_kernel.awq_marlin_repack(weights, size_k, size_n, bits).cpu(), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("is_permuted", [False, True])
@pytest.mark.parametrize(("size_k", "size_n"), SIZES)
def test_gptq(size_k: int, size_n: int, is_permuted: bool, bits: int) -> None:
    weights = words(size_k * bits // 32, size_n)
    perm = torch.randperm(size_k, device=DEVICE).int() if is_permuted else no_perm()
    expected = sgl_kernel.gptq_marlin_repack(weights.cpu(), perm.cpu(), size_k, size_n, bits)
    assert_same_bits(sgl_kernel.gptq_marlin_repack(weights, perm, size_k, size_n, bits).cpu(), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("experts", [0, 1, 5])
def test_every_expert(experts: int, bits: int) -> None:
    weights = words(experts, 64, 192 * bits // 32)
    perm = torch.empty(experts, 0, dtype=torch.int32, device=DEVICE)
    expected = sgl_kernel.awq_marlin_moe_repack(weights.cpu(), perm.cpu(), 64, 192, bits)
    assert_same_bits(sgl_kernel.awq_marlin_moe_repack(weights, perm, 64, 192, bits).cpu(), expected)


@pytest.mark.sanitizer
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_that_do_not_exist_are_zeros(bits: int) -> None:
    weights = words(64 * bits // 32, 64)
    perm = torch.arange(64, device=DEVICE).int()
    perm[[3, 17, 40]] = torch.tensor([-1, 64, 2**31 - 1], device=DEVICE).int()
    kept = ((perm >= 0) & (perm < 64)).cpu()
    identity = torch.arange(64).int()
    mask = torch.where(kept, 2**bits - 1, 0)
    shifts = torch.arange(32 // bits) * bits
    marks = (mask.view(-1, 32 // bits) << shifts).sum(-1).unsqueeze(1).expand(-1, 64)
    marks = (weights.cpu().long() & marks).to(torch.int32).contiguous()
    expected = sgl_kernel.gptq_marlin_repack(marks, identity, 64, 64, bits)
    assert_same_bits(sgl_kernel.gptq_marlin_repack(weights, perm, 64, 64, bits).cpu(), expected)
