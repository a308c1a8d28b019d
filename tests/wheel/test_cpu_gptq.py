from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sgl_kernel
import torch
from torch import Tensor

BITS = (2, 3, 4, 8)


def pack_columns(values: Tensor, bits: int) -> Tensor:
    """Each column's values one after the other in one long integer, cut into words."""
    out = []
    for column in values.t().tolist():
        stream = sum(value << (i * bits) for i, value in enumerate(column))
        out.append([(stream >> (32 * w)) & 0xFFFFFFFF for w in range(len(column) * bits // 32)])
    return torch.tensor(out, dtype=torch.int64).to(torch.uint32).view(torch.int32).t().contiguous()


class Weights:
    def __init__(self, bits: int, rows: int, columns: int, groups: int) -> None:
        self.q = torch.randint(2**bits, (rows, columns))
        self.zeros = torch.randint(2**bits, (groups, columns))  # as stored
        self.scales = (torch.rand(groups, columns) * 0.1 + 0.01).half()
        self.qweight = pack_columns(self.q, bits)
        self.qzeros = pack_columns(self.zeros.t(), bits).t().contiguous()

    def dense(self, group: Tensor) -> Tensor:
        return (self.q - (self.zeros[group] + 1)).double() * self.scales.double()[group]


def none() -> Tensor:
    return torch.empty(0, dtype=torch.int32)


def gemm(a: Tensor, weights: Weights, g_idx: Tensor, use_shuffle: bool, bits: int) -> Tensor:
    return sgl_kernel.gptq_gemm(a, weights.qweight, weights.qzeros, weights.scales, g_idx, use_shuffle, bits)


def assert_near(out: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("tokens", "rows", "groups"), [(0, 64, 2), (1, 32, 1), (3, 96, 3), (7, 96, 8)])
@pytest.mark.parametrize("use_shuffle", [False, True])
def test_consecutive_groups(bits: int, tokens: int, rows: int, groups: int, use_shuffle: bool) -> None:
    weights = Weights(bits, rows, 64, groups)
    a = torch.randn(tokens, rows + 3).half()[:, :rows]
    expected = a.double() @ weights.dense(torch.arange(rows) // (rows // groups))
    out = gemm(a, weights, none(), use_shuffle, bits)
    assert out.dtype == torch.float16
    assert_near(out, expected)


@pytest.mark.parametrize("bits", BITS)
def test_groups_of_rows(bits: int) -> None:
    weights = Weights(bits, 96, 32, 5)
    g_idx = torch.randint(5, (96,), dtype=torch.int32)
    a = torch.randn(3, 96).half()
    assert_near(gemm(a, weights, g_idx, False, bits), a.double() @ weights.dense(g_idx.long()))


@pytest.mark.parametrize("bits", BITS)
def test_shuffled(bits: int) -> None:
    """Act-order: rows sorted by their group, in the weights and in the activations."""
    weights = Weights(bits, 96, 64, 3)
    g_idx = (torch.arange(96) // 32)[torch.randperm(96)]
    perm = g_idx.argsort().int()
    a = torch.randn(4, 96).half()
    expected = a.double() @ weights.dense(g_idx)
    sgl_kernel.gptq_shuffle(weights.qweight, perm, bits)
    assert torch.equal(weights.qweight, pack_columns(weights.q[perm.long()], bits))
    assert_near(gemm(a, weights, perm, True, bits), expected)


@pytest.mark.parametrize("bits", BITS)
def test_shuffling_nothing(bits: int) -> None:
    weights = Weights(bits, 32, 32, 1)
    before = weights.qweight.clone()
    sgl_kernel.gptq_shuffle(weights.qweight, none(), bits)
    assert torch.equal(weights.qweight, before)


def arguments() -> dict[str, Any]:
    weights = Weights(4, 64, 32, 2)
    return {
        "a": torch.randn(2, 64).half(),
        "b_q_weight": weights.qweight,
        "b_gptq_qzeros": weights.qzeros,
        "b_gptq_scales": weights.scales,
        "b_g_idx": none(),
        "use_shuffle": False,
        "bit": 4,
    }


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.sgl_kernel.gptq_gemm.default, tuple(arguments().values()))
    weights = Weights(3, 32, 32, 1)
    perm = torch.randperm(32).int()
    torch.library.opcheck(torch.ops.sgl_kernel.gptq_shuffle.default, (weights.qweight, perm, 3))


def test_one_graph(compile_whole: Callable[..., Any]) -> None:
    a, *rest = arguments().values()
    compiled = compile_whole(lambda a: sgl_kernel.gptq_gemm(a, *rest) * 2)
    assert torch.equal(compiled(a), sgl_kernel.gptq_gemm(a, *rest) * 2)


def words(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def half(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float16)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"bit": 5}, "bit: expected 2, 3, 4 or 8, got 5"),
    "weight dim": ({"b_q_weight": words(8)}, "b_q_weight: expected 2-D [in * bit / 32, out], got 1-D [8]"),
    "weight dtype": (
        {"b_q_weight": words(8, 32).long()},
        "b_q_weight: expected int32 (packed weights), got int64",
    ),
    "weight strides": (
        {"b_q_weight": words(32, 8).t()},
        "b_q_weight: expected a contiguous tensor, got stride 8 of dimension 1",
    ),
    "weight rows": ({"bit": 3}, "b_q_weight.size(0): expected a multiple of 3, got 8"),
    "weight columns": (
        {"b_q_weight": words(8, 33)},
        "b_q_weight.size(1): expected a multiple of 8, got 33",
    ),
    "a dim": ({"a": half(64)}, "a: expected 2-D [tokens, in], got 1-D [64]"),
    "a columns": ({"a": half(2, 32)}, "a.size(1): expected 64 (32 / bit * b_q_weight.size(0)), got 32"),
    "a dtype": ({"a": half(2, 64).bfloat16()}, "a: expected float16 (activations), got bfloat16"),
    "a device": (
        {"a": half(2, 64).to("meta")},
        "a: expected a tensor on cpu (device of b_q_weight), got one on meta",
    ),
    "a strides": ({"a": half(64, 2).t()}, "a.stride(-1): expected 1, got 2"),
    "scales dim": ({"b_gptq_scales": half(32)}, "b_gptq_scales: expected 2-D [groups, out], got 1-D [32]"),
    "scales columns": (
        {"b_gptq_scales": half(2, 64)},
        "b_gptq_scales.size(1): expected 32 (b_q_weight.size(1)), got 64",
    ),
    "scales dtype": (
        {"b_gptq_scales": half(2, 32).float()},
        "b_gptq_scales: expected float16 (dtype of a), got float32",
    ),
    "zeros dim": (
        {"b_gptq_qzeros": words(4)},
        "b_gptq_qzeros: expected 2-D [groups, out * bit / 32], got 1-D [4]",
    ),
    "zeros groups": (
        {"b_gptq_qzeros": words(1, 4)},
        "b_gptq_qzeros.size(0): expected 2 (b_gptq_scales.size(0)), got 1",
    ),
    "zeros columns": (
        {"b_gptq_qzeros": words(2, 8)},
        "b_gptq_qzeros.size(1): expected 4 (b_q_weight.size(1) * bit / 32), got 8",
    ),
    "zeros dtype": (
        {"b_gptq_qzeros": words(2, 4).long()},
        "b_gptq_qzeros: expected int32 (packed zero points), got int64",
    ),
    "indices dim": ({"b_g_idx": words(1, 64)}, "b_g_idx: expected 1-D [in], or empty, got 2-D [1, 64]"),
    "indices size": ({"b_g_idx": words(32)}, "b_g_idx.size(0): expected 64 (input features), got 32"),
    "indices dtype": ({"b_g_idx": words(64).long()}, "b_g_idx: expected int32 (indices), got int64"),
    "groups": (
        {"b_gptq_scales": half(3, 32), "b_gptq_qzeros": words(3, 4)},
        "b_gptq_scales.size(0): expected a divisor of 64 (input features), got 3",
    ),
    "no group": (
        {"b_gptq_scales": half(0, 32), "b_gptq_qzeros": words(0, 4), "b_g_idx": words(64)},
        "b_gptq_scales.size(0): expected a divisor of 64 (input features), got 0",
    ),
    "no rows": (
        {"a": half(2, 0), "b_q_weight": words(0, 32)},
        "a.size(1): expected at least 1, got 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(RuntimeError) as failure:
        sgl_kernel.gptq_gemm(**{**arguments(), **changes})
    assert str(failure.value) == f"gptq_gemm: {message}"


BAD_SHUFFLE: dict[str, tuple[tuple[Tensor, Tensor, int], str]] = {
    "bits": ((words(4, 32), none(), 1), "bit: expected 2, 3, 4 or 8, got 1"),
    "rows": ((words(4, 32), none(), 3), "q_weight.size(0): expected a multiple of 3, got 4"),
    "weight dtype": (
        (words(4, 32).long(), none(), 4),
        "q_weight: expected int32 (packed weights), got int64",
    ),
    "perm": ((words(4, 32), words(16), 4), "q_perm.size(0): expected 32 (input features), got 16"),
}


@pytest.mark.parametrize("case", BAD_SHUFFLE)
def test_bad_shuffle(case: str) -> None:
    values, message = BAD_SHUFFLE[case]
    with pytest.raises(RuntimeError) as failure:
        sgl_kernel.gptq_shuffle(*values)
    assert str(failure.value) == f"gptq_shuffle: {message}"
