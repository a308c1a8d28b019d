from __future__ import annotations

import math

import pytest
import sgl_kernel
import torch
from torch import Tensor

from ._compare import assert_close, assert_same_bits
from ._tensors import DEVICE, name, randn

BASES = {"merge_state": 2.0, "merge_state_v2": math.e}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = [
    *((0, 4, 64), (2, 0, 64), (1, 1, 1), (1, 1, 8), (3, 5, 7), (17, 3, 96), (16, 64, 128), (5, 2, 192)),
    *((513, 32, 256), (7, 3, 264), (4, 2, 512), (4, 2, 576), (129, 1, 33), (4099, 64, 128), (8200, 64, 128)),
]


def parts(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def s() -> Tensor:
        return randn(*shape[:2], dtype=torch.float32, scale=4.0)

    return randn(*shape, dtype=dtype), s(), randn(*shape, dtype=dtype), s()


def reference(op: str, v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor) -> tuple[Tensor, Tensor]:
    """The formula in float64, without the maximum."""
    scale = math.log(BASES[op])
    w_a, w_b = torch.exp(s_a.double() * scale), torch.exp(s_b.double() * scale)
    v = (v_a.double() * w_a[..., None] + v_b.double() * w_b[..., None]) / (w_a + w_b)[..., None]
    return v, torch.log(w_a + w_b) / scale


def check(op: str, v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor, *out: Tensor) -> None:
    expected_v, expected_s = reference(op, v_a, s_a, v_b, s_b)
    v, s = getattr(sgl_kernel, op)(v_a, s_a, v_b, s_b, *out)
    # Weights are good to some ulps of fp32; two products of up to 5 in size may cancel.
    assert_close(v, expected_v, slack=5e-6, label=f"{op}: v")
    assert_close(s, expected_s, ulps=4, slack=2e-6, label=f"{op}: s")


def shapes() -> list[object]:
    small = {(3, 5, 7), (17, 3, 96), (16, 64, 128), (4, 2, 576)}
    return [pytest.param(x, marks=[pytest.mark.sanitizer] if x in small else []) for x in SHAPES]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", shapes())
@pytest.mark.parametrize("op", BASES)
def test_merge(op: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(op, *parts(*shape, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 5, 7), (16, 64, 128), (4, 2, 576), (4099, 64, 128)])
@pytest.mark.parametrize("op", BASES)
def test_outputs_may_be_inputs(op: str, shape: tuple[int, ...]) -> None:
    v_a, s_a, v_b, s_b = parts(*shape, dtype=torch.bfloat16)
    v, s = getattr(sgl_kernel, op)(v_a, s_a, v_b, s_b)
    results = getattr(sgl_kernel, op)(v_a, s_a, v_b, s_b, v_a, s_a)
    assert results[0] is v_a
    assert_same_bits(v_a, v, "v")
    assert_same_bits(s_a, s, "s")


@pytest.mark.parametrize("dim", [64, 65])
@pytest.mark.parametrize("op", BASES)
def test_empty_parts_and_nan(op: str, dim: int) -> None:
    v_a, s_a, v_b, s_b = parts(5, 1, dim, dtype=torch.float16)
    s_a[0] = s_b[1] = s_a[2] = s_b[2] = -torch.inf
    v_a[0] = v_b[1] = v_a[2] = torch.nan
    s_a[3], s_b[4] = torch.nan, torch.nan
    v, s = getattr(sgl_kernel, op)(v_a, s_a, v_b, s_b)
    assert_same_bits(v[0], v_b[0])
    assert_same_bits(v[1], v_a[1])
    assert_same_bits(v[2], torch.zeros_like(v[2]))
    assert_same_bits(s[:3, 0], torch.stack((s_b[0, 0], s_a[1, 0], s_a[2, 0])))
    assert v[3:].isnan().all()
    assert s[3:].isnan().all()


def test_plus_infinity_is_an_empty_part_of_v2() -> None:
    v_a, s_a, v_b, s_b = parts(3, 2, 64, dtype=torch.float16)
    s_a[0], s_b[1] = torch.inf, torch.inf
    s_a[2] = s_b[2] = torch.inf
    v, s = sgl_kernel.merge_state_v2(v_a, s_a, v_b, s_b)
    assert_same_bits(v[0], v_b[0])
    assert_same_bits(v[1], v_a[1])
    assert_same_bits(v[2], torch.zeros_like(v[2]))
    assert_same_bits(s, torch.stack((s_b[0], s_a[1], torch.full_like(s_a[2], -torch.inf))))


@pytest.mark.parametrize("op", BASES)
def test_far_apart_and_large(op: str) -> None:
    v_a, s_a, v_b, s_b = parts(4, 1, 64, dtype=torch.float32)
    s_a[0], s_b[0] = 3e4, -3e4
    s_a[1], s_b[1] = -1e38, 1e38
    s_a[2] = s_b[2] = 1e30
    s_a[3] = s_b[3] = -1e30
    v, s = getattr(sgl_kernel, op)(v_a, s_a, v_b, s_b)
    assert_same_bits(v[:2], torch.stack((v_a[0], v_b[1])))
    assert_close(v[2:], (v_a[2:].double() + v_b[2:].double()) / 2, slack=1e-6)
    assert_same_bits(s, torch.maximum(s_a, s_b))


def test_misaligned_values() -> None:
    shape = (9, 4, 64)
    buffers = [torch.empty(9 * 4 * 64 + 8, dtype=torch.bfloat16, device=DEVICE) for _ in range(3)]
    v_a, v_b, out = (buffer[1 : 1 + 9 * 4 * 64].view(shape) for buffer in buffers)
    for values in (v_a, v_b):
        values.copy_(randn(*shape, dtype=torch.bfloat16))
    s_a, s_b = randn(9, 4, dtype=torch.float32), randn(9, 4, dtype=torch.float32)
    check("merge_state_v2", v_a, s_a, v_b, s_b, out)


def test_more_than_2_to_the_32_bytes() -> None:
    """Rows at the end of 8.6 GB each, merged in place."""
    tokens = (1 << 32) // (64 * 128) + 3
    v_a, v_b = (torch.zeros(tokens, 64, 128, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    s_a, s_b = (randn(tokens, 64, dtype=torch.float32) for _ in range(2))
    for values in (v_a, v_b):
        values[-5:] = randn(5, 64, 128, dtype=torch.bfloat16)
    expected, _ = reference("merge_state_v2", v_a[-5:], s_a[-5:], v_b[-5:], s_b[-5:])
    sgl_kernel.merge_state_v2(v_a, s_a, v_b, s_b, v_a)
    assert_close(v_a[-5:], expected, slack=5e-6)
    assert not v_a[:-5].any()
