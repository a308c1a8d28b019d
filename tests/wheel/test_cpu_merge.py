from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import sgl_kernel
import torch
from torch import Tensor

BASES = {"merge_state": 2.0, "merge_state_v2": math.e}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def reference(op: str, v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor) -> tuple[Tensor, Tensor]:
    scale = math.log(BASES[op])
    w_a, w_b = torch.exp(s_a.double() * scale), torch.exp(s_b.double() * scale)
    v = (v_a.double() * w_a[..., None] + v_b.double() * w_b[..., None]) / (w_a + w_b)[..., None]
    return v, torch.log(w_a + w_b) / scale


def parts(*shape: int, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    v_a, v_b = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    return v_a, torch.randn(shape[:2]) * 3, v_b, torch.randn(shape[:2]) * 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 4, 128), (5, 2, 7), (0, 4, 64), (2, 0, 64)])
@pytest.mark.parametrize("op", BASES)
def test_values(
    op: str, shape: tuple[int, ...], dtype: torch.dtype, assert_rounded: Callable[..., None]
) -> None:
    arguments = parts(*shape, dtype=dtype)
    v, s = getattr(sgl_kernel, op)(*arguments)
    expected_v, expected_s = reference(op, *arguments)
    assert (v.dtype, s.dtype) == (dtype, torch.float32)
    assert_rounded(v, expected_v)
    assert_rounded(s, expected_s)


@pytest.mark.parametrize("op", BASES)
def test_given_outputs(op: str) -> None:
    arguments = parts(3, 4, 16)
    v, s = torch.empty(3, 4, 16).half(), torch.empty(3, 4)
    results = getattr(sgl_kernel, op)(*arguments, v, s)
    assert results[0] is v
    assert results[1] is s
    for result, expected in zip(results, getattr(sgl_kernel, op)(*arguments), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("op", BASES)
def test_half_precision_log_sum_exps_are_cast(op: str) -> None:
    v_a, s_a, v_b, s_b = parts(3, 4, 16)
    _, s = getattr(sgl_kernel, op)(v_a, s_a.half(), v_b, s_b.half())
    assert s.dtype == torch.float32


@pytest.mark.parametrize("op", BASES)
def test_empty_parts(op: str) -> None:
    v_a, s_a, v_b, s_b = parts(4, 1, 8)
    s_a[0] = s_b[1] = s_a[2] = s_b[2] = -torch.inf
    v_a[0] = v_b[1] = v_a[2] = torch.nan
    s_a[3] = torch.nan
    v, s = getattr(sgl_kernel, op)(v_a, s_a, v_b, s_b)
    assert torch.equal(v[0], v_b[0])
    assert torch.equal(v[1], v_a[1])
    assert torch.equal(v[2], torch.zeros(1, 8).half())
    assert torch.equal(s[:3, 0], torch.stack((s_b[0, 0], s_a[1, 0], torch.tensor(-torch.inf))))
    assert v[3].isnan().all()
    assert s[3].isnan().all()


def test_plus_infinity_is_an_empty_part_of_v2() -> None:
    v_a, s_a, v_b, s_b = parts(1, 1, 8)
    s_a[:] = torch.inf
    v, s = sgl_kernel.merge_state_v2(v_a, s_a, v_b, s_b)
    assert torch.equal(v, v_b)
    assert torch.equal(s, s_b)
    assert sgl_kernel.merge_state(v_a, s_a, v_b, s_b)[0].isnan().all()


@pytest.mark.parametrize("op", BASES)
def test_opcheck(op: str) -> None:
    outputs = torch.empty(3, 4, 16).half(), torch.empty(3, 4)
    torch.library.opcheck(getattr(torch.ops.sgl_kernel, op).default, (*parts(3, 4, 16), *outputs))


V, S = torch.zeros(3, 4, 16).half(), torch.zeros(3, 4)
BAD = [
    ({"v_a": torch.zeros(3, 64).half()}, "v_a: expected 3-D [tokens, heads, head_dim], got 2-D [3, 64]"),
    ({"v_a": V.double()}, "v_a: expected bfloat16 or float16 or float32, got float64"),
    (
        {"v_a": torch.zeros(3, 4, 32).half()[..., :16]},
        "v_a: expected a contiguous tensor, got [3, 4, 16] with other strides",
    ),
    ({"s_a": torch.zeros(3)}, "s_a: expected 2-D [tokens, heads], got 1-D [3]"),
    ({"s_a": torch.zeros(3, 5)}, "s_a.size(1): expected 4 (that of v_a), got 5"),
    ({"s_b": S.half()}, "s_b: expected float32 (a log-sum-exp), got float16"),
    ({"v_b": V.bfloat16()}, "v_b: expected float16 (dtype of v_a), got bfloat16"),
    ({"v_b": torch.zeros(3, 4, 8).half()}, "v_b.size(2): expected 16 (that of v_a), got 8"),
    (
        {"s_merged": S.t().contiguous().t()},
        "s_merged: expected a contiguous tensor, got [3, 4] with other strides",
    ),
    ({"v_merged": V.to("meta")}, "v_merged: expected a tensor on cpu (device of v_a), got one on meta"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[message for _, message in BAD])
@pytest.mark.parametrize("op", BASES)
def test_bad_arguments(op: str, changed: dict[str, Tensor], message: str) -> None:
    good = {"v_a": V, "s_a": S, "v_b": V, "s_b": S, "v_merged": V, "s_merged": S}
    with pytest.raises(RuntimeError) as failure:
        getattr(torch.ops.sgl_kernel, op)(*(good | changed).values())
    assert str(failure.value) == f"{op}: {message}"
