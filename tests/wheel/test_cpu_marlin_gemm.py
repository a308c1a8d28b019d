from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import sgl_kernel
import torch
from sgl_kernel import _marlin_gemm as marlin
from sgl_kernel.scalar_type import ScalarType, scalar_types
from torch import Tensor

N, K = 128, 256
HALVES = (torch.float16, torch.bfloat16)
TYPES = (scalar_types.uint4, scalar_types.uint4b8, scalar_types.uint8b128, scalar_types.float8_e4m3fn)
FLOAT8_FACTOR = {torch.float16: 2.0**8, torch.bfloat16: 2.0**120}


def pack_weight(q: Tensor, bits: int) -> Tensor:
    """Marlin tiles lane by lane, as a tensor core fragment reads them."""
    size_k, size_n = q.shape
    order = (0, 2, 4, 6, 1, 3, 5, 7) if bits == 4 else (0, 2, 1, 3)
    rows = []
    for kt in range(size_k // 16):
        words = []
        for nb in range(size_n // 64):
            for lane in range(32):
                for j in range(4):
                    r, c = 16 * kt + 2 * (lane % 4), 64 * nb + 16 * j + lane // 4
                    values = [int(q[r + d, c + e]) for e in (0, 8) for d in (0, 1, 8, 9)]
                    for first in range(0, 8, 32 // bits):
                        fields = [values[first + x] << bits * t for t, x in enumerate(order)]
                        words.append(sum(fields))
        rows.append(words)
    packed = torch.tensor(rows, dtype=torch.int64)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def permute_scales(scales: Tensor, is_single: bool) -> Tensor:
    result = torch.empty_like(scales)
    size = 32 if is_single else 64
    single = (0, 1, 8, 9, 16, 17, 24, 25)
    for block in range(0, scales.size(1), size):
        for i in range(size // 8):
            for j in range(8):
                source = 2 * i + single[j] if is_single else i + 8 * j
                result[:, block + 8 * i + j] = scales[:, block + source]
    return result


def pack_zeros(zeros: Tensor) -> Tensor:
    result = torch.zeros(zeros.size(0), zeros.size(1) // 8, dtype=torch.int64)
    for block in range(zeros.size(1) // 64):
        for i in range(8):
            for t, x in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                result[:, 8 * block + i] |= zeros[:, 64 * block + i + 8 * x].long() << (4 * t)
    return torch.where(result >= 2**31, result - 2**32, result).int()


class Problem:
    """Random weights of one kind: what the op takes, and W [k, n] in float64."""

    def __init__(
        self, type_: ScalarType, group_size: int, dtype: torch.dtype, is_act_order: bool = False
    ) -> None:
        bits = type_.size_bits
        groups = 1 if group_size == -1 else K // group_size
        q = torch.randint(0, 2**bits, (K, N))
        rows = torch.arange(K) * groups // K
        scales = (torch.rand(groups, N) + 0.5).to(dtype)
        zeros = None
        self.perm = self.g_idx = torch.empty(0, dtype=torch.int32)
        if type_ == scalar_types.float8_e4m3fn:
            q[(q & 127) == 127] = 0x38  # no NaN
            values = q.to(torch.uint8).view(torch.float8_e4m3fn).double()
        elif type_ == scalar_types.uint4:
            zeros = torch.randint(0, 16, (groups, N))
            values = (q - zeros[rows]).double()
        else:
            values = (q - type_.bias).double()
        if is_act_order:
            original = rows[torch.randperm(K)]
            self.perm = torch.argsort(original).int()
            self.g_idx = original[self.perm.long()].int()
            rows = original
        self.weight = values * scales[rows].double()
        self.type, self.dtype = type_, dtype
        self.packed = pack_weight(q[self.perm.long()] if is_act_order else q, bits)
        factor = FLOAT8_FACTOR[dtype] if type_ == scalar_types.float8_e4m3fn else 1.0
        self.scales = permute_scales(scales, groups == 1) * factor
        self.zeros = pack_zeros(zeros) if zeros is not None else torch.empty(0, dtype=torch.int32)
        self.workspace = torch.zeros(132, dtype=torch.int32)

    def arguments(self, a: Tensor, c: Tensor | None = None) -> tuple[Any, ...]:
        operands = (self.packed, self.scales, None, self.zeros, self.g_idx, self.perm, self.workspace)
        return a, c, *operands, self.type, a.size(0), N, K

    def op_arguments(self, a: Tensor) -> tuple[Any, ...]:
        zeros = self.zeros if self.zeros.numel() else None
        c = torch.empty(a.size(0), N, dtype=a.dtype)
        return (
            a,
            c,
            self.packed,
            self.scales,
            zeros,
            None,
            None,
            self.workspace,
            None,
            self.type.id,
            a.size(0),
            N,
            K,
            0,
        )


def assert_product(result: Tensor, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """The weights and the result are rounded once each, the sum is float32."""
    expected = a.double() @ weight
    magnitude = a.double().abs() @ weight.abs()
    if bias is not None:
        expected, magnitude = expected + bias.double(), magnitude + bias.double().abs()
    allowed = torch.finfo(a.dtype).eps * (0.5 * magnitude + expected.abs())
    assert ((result.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_unpack_weight(bits: int) -> None:
    q = torch.randint(0, 2**bits, (32, 128))
    assert torch.equal(marlin.unpack_weight(pack_weight(q, bits), bits).long(), q)


@pytest.mark.parametrize("is_single", [True, False])
def test_unpack_scales(is_single: bool) -> None:
    scales = torch.randn(1 if is_single else 3, 192)
    assert torch.equal(marlin.unpack_scales(permute_scales(scales, is_single), is_single), scales)


def test_unpack_zeros() -> None:
    zeros = torch.randint(0, 16, (3, 192))
    assert torch.equal(marlin.unpack_zeros(pack_zeros(zeros), 192).long(), zeros)


@pytest.mark.parametrize("m", [0, 1, 7])
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_product(type_: ScalarType, dtype: torch.dtype, group_size: int, m: int) -> None:
    problem = Problem(type_, group_size, dtype)
    a = torch.randn(m, K).to(dtype)
    result = sgl_kernel.gptq_marlin_gemm(*problem.arguments(a), use_fp32_reduce=True)
    assert (result.shape, result.dtype) == ((m, N), dtype)
    assert_product(result, a, problem.weight)
    assert not problem.workspace.any()


@pytest.mark.parametrize("is_k_full", [True, False])
@pytest.mark.parametrize("group_size", [-1, 32, 128])
@pytest.mark.parametrize("type_", [scalar_types.uint4b8, scalar_types.uint8b128], ids=str)
def test_act_order(type_: ScalarType, group_size: int, is_k_full: bool) -> None:
    problem = Problem(type_, group_size, torch.float16, is_act_order=True)
    a = torch.randn(5, K).half()
    result = sgl_kernel.gptq_marlin_gemm(*problem.arguments(a), is_k_full=is_k_full)
    assert_product(result, a, problem.weight)


def test_strided_operands_and_bias() -> None:
    problem = Problem(scalar_types.uint4, 128, torch.bfloat16)
    a = torch.randn(3, K + 5).bfloat16()[:, 5:]
    c = torch.empty(3, N + 8, dtype=torch.bfloat16)[:, :N]
    bias = torch.randn(N).bfloat16()
    result = sgl_kernel.gptq_marlin_gemm(*problem.arguments(a, c), b_bias=permute_scales(bias[None], True)[0])
    assert result is c
    assert_product(c, a, problem.weight, bias)


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_opcheck(type_: ScalarType) -> None:
    arguments = Problem(type_, 128, torch.bfloat16).op_arguments(torch.randn(3, K).bfloat16())
    torch.library.opcheck(torch.ops.sgl_kernel.gptq_marlin_gemm.default, arguments)


def test_one_graph(compile_whole: Callable[..., Any]) -> None:
    problem = Problem(scalar_types.uint4, 128, torch.float16)

    def linear(a: Tensor) -> Tensor:
        return sgl_kernel.gptq_marlin_gemm(*problem.arguments(a), use_fp32_reduce=True) + 1

    a = torch.randn(4, K).half()
    assert torch.equal(compile_whole(linear)(a), linear(a))


WRONG: dict[str, tuple[dict[int, Any], str]] = {
    "type": (
        {9: scalar_types.int8.id},
        "b_q_type: expected uint4, uint4b8, uint8b128 or float8_e4m3fn, got ",
    ),
    "size_n": ({11: 96}, "size_n: expected a multiple of 64, got 96"),
    "size_k": ({12: 192}, "size_k: expected a positive multiple of 128, got 192"),
    "no k": ({12: 0}, "size_k: expected a positive multiple of 128, got 0"),
    "a dtype": ({0: torch.ones(3, K)}, "a: expected float16 or bfloat16, got float32"),
    "a rows": ({10: 4}, "a.size(0): expected 4 (size_m), got 3"),
    "a stride": ({0: torch.ones(K, 3).half().t()}, "a.stride(-1): expected 1, got 3"),
    "c shape": ({1: torch.ones(3, N + 64).half()}, "c.size(1): expected 128 (size_n), got 192"),
    "c dtype": ({1: torch.ones(3, N).bfloat16()}, "c: expected float16 (dtype of a), got bfloat16"),
    "c rows": ({1: torch.ones(3, N + 1).half()[:, :N]}, "c: expected rows aligned to 4 bytes"),
    "weight shape": (
        {2: torch.zeros(16, 128).int()},
        "b_q_weight.size(1): expected 256 (size_n * bits / 2), got 128",
    ),
    "weight dtype": (
        {2: torch.zeros(16, 256).long()},
        "b_q_weight: expected int32 (fixed by the op), got int64",
    ),
    "weight stride": (
        {2: torch.zeros(16, 512).int()[:, :256]},
        "b_q_weight.stride(0): expected 256 (contiguous), got 512",
    ),
    "groups": (
        {3: torch.ones(3, N).half()},
        "b_scales.size(0): expected 1 group, or groups of 32, 64 or 128",
    ),
    "group of 16": ({3: torch.ones(16, N).half()}, "b_scales.size(0): expected 1 group, or groups of 32, 64"),
    "no groups": ({3: torch.ones(0, N).half()}, "b_scales.size(0): expected at least one group, got 0"),
    "scales dtype": ({3: torch.ones(2, N)}, "b_scales: expected float16 (dtype of a), got float32"),
    "zeros": ({4: torch.zeros(2, 16).int()}, "b_zeros: expected none with this b_q_type, got some"),
    "no zeros": ({9: scalar_types.uint4.id}, "b_zeros: expected zero points with uint4, got none"),
    "order": ({5: torch.zeros(K).int()}, "g_idx, perm: expected both or none, got one of them"),
    "order of zeros": (
        {**{i: torch.zeros(K).int() for i in (5, 6)}, 4: torch.zeros(2, 16).int(), 9: scalar_types.uint4.id},
        "g_idx: expected none with b_zeros or float8 weights, got one",
    ),
    "perm size": (
        {5: torch.zeros(K).int(), 6: torch.zeros(8).int()},
        "perm.size(0): expected 256 (size_k), got 8",
    ),
    "workspace": ({7: torch.zeros(132)}, "workspace: expected int32 (fixed by the op), got float32"),
    "bias size": ({8: torch.ones(8).half()}, "b_bias.size(0): expected 128 (size_n), got 8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refusals(case: str) -> None:
    changed, message = WRONG[case]
    problem = Problem(scalar_types.uint4b8, 128, torch.float16)
    arguments = list(problem.op_arguments(torch.randn(3, K).half()))
    for index, value in changed.items():
        arguments[index] = value
    with pytest.raises(RuntimeError, match="^gptq_marlin_gemm: " + re.escape(message)):
        torch.ops.sgl_kernel.gptq_marlin_gemm(*arguments)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"is_zp_float": True}, "is_zp_float: expected False (zero points are integers), got True"),
        ({"global_scale": torch.ones(1)}, "global_scale: expected None (it belongs to float4 weights), got "),
    ],
)
def test_refused_options(option: dict[str, Any], message: str) -> None:
    problem = Problem(scalar_types.uint4, 128, torch.float16)
    names = ("a", "c", "b_q_weight", "b_scales", "global_scale", "b_zeros", "g_idx", "perm", "workspace")
    sizes = ("b_q_type", "size_m", "size_n", "size_k")
    arguments = dict(zip(names + sizes, problem.arguments(torch.ones(1, K).half()), strict=True))
    with pytest.raises(RuntimeError, match=re.escape(f"gptq_marlin_gemm: {message}")):
        sgl_kernel.gptq_marlin_gemm(**{**arguments, **option})
