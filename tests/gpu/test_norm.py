from __future__ import annotations

from collections.abc import Iterator

import pytest
import sgl_kernel
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ._compare import assert_close, assert_same_bits
from ._tensors import DEVICE, HALVES, embed_rows, name, randn

EPS = 1e-6
PLAIN = ("rmsnorm", "gemma_rmsnorm")
FUSED = ("fused_add_rmsnorm", "gemma_fused_add_rmsnorm")

# Head-dim rows, model widths, sizes that no vector divides, and both sides of each power of two at which a
# kernel may hand over to the next.
HIDDEN = (1, 2, 7, 8, 24, 32, 40, 64, 111, 128, 129, 256, 264, 500, 512, 520, 1024, 1032, 2048, 3072, 4096)
LONG_HIDDEN = (5120, 8184, 8191, 8192, 8200, 11111, 16384, 16392, 32768, 65536, 65544, 131072)
TOKENS = (0, 1, 2, 3, 7, 17, 99, 989, 4097)
MANY_TOKENS_LIMIT = 1 << 24  # elements; longer rows are tested with fewer of them
SANITIZER_HIDDEN = (1, 7, 32, 64, 128, 129, 256, 512, 1024, 4096, 8191, 16384, 32768, 65536)


def reference(x: Tensor, weight: Tensor, eps: float, op: str) -> Tensor:
    """x · rsqrt(mean(x²) + eps) · w in float64, with w + 1 for gemma; ``x`` is [tokens, hidden] float64."""
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * scale * (weight.double() + op.startswith("gemma"))


def check_plain(op: str, x: Tensor, weight: Tensor, eps: float = EPS, out: Tensor | None = None) -> None:
    expected = reference(x.double(), weight, eps, op)
    result = getattr(sgl_kernel, op)(x, weight, eps, out=out)
    assert out is None or result is out
    assert result.dtype == x.dtype
    assert_close(result, expected, label=op)  # fp32, one rounding


def check_fused(op: str, x: Tensor, residual: Tensor, weight: Tensor, eps: float = EPS) -> None:
    expected_residual = (x.float() + residual.float()).to(x.dtype)  # the contract, bit for bit
    expected = reference(x.double() + residual.double(), weight, eps, op)
    assert getattr(sgl_kernel, op)(x, residual, weight, eps) is None
    assert_close(residual, expected_residual.double(), ulps=0, label=f"{op}: residual")
    assert_close(x, expected, label=f"{op}: input")  # fp32, one rounding


def sizes() -> Iterator[object]:
    """tokens, hidden; the small shapes of each kernel carry the sanitizer's mark."""
    for hidden in HIDDEN + LONG_HIDDEN:
        for tokens in TOKENS:
            if tokens * hidden <= MANY_TOKENS_LIMIT:
                is_small = tokens == 3 and hidden in SANITIZER_HIDDEN
                yield pytest.param(tokens, hidden, marks=[pytest.mark.sanitizer] if is_small else [])
    for hidden in (2048, 4096, 8192, 16384):  # more rows than blocks that run at once: other kernels
        yield pytest.param(257, hidden, marks=pytest.mark.sanitizer)
    yield 4097, 16384
    yield 2051, 65536


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize(("tokens", "hidden"), list(sizes()))
@pytest.mark.parametrize("op", PLAIN)
def test_rmsnorm(op: str, tokens: int, hidden: int, dtype: torch.dtype) -> None:
    check_plain(op, randn(tokens, hidden, dtype=dtype), randn(hidden, dtype=dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize(("tokens", "hidden"), list(sizes()))
@pytest.mark.parametrize("op", FUSED)
def test_fused_add_rmsnorm(op: str, tokens: int, hidden: int, dtype: torch.dtype) -> None:
    x, residual = randn(tokens, hidden, dtype=dtype), randn(tokens, hidden, dtype=dtype, scale=3.0)
    check_fused(op, x, residual, randn(hidden, dtype=dtype))


@pytest.mark.parametrize("hidden", [128, 500, 4096])
@pytest.mark.parametrize("op", PLAIN)
def test_out_may_alias_the_input(op: str, hidden: int) -> None:
    x, weight = randn(17, hidden, dtype=torch.bfloat16), randn(hidden, dtype=torch.bfloat16)
    check_plain(op, x, weight, out=x)


# (padding, offset) of input, output and residual rows, in elements. Odd ones leave no vector aligned; the
# mixed ones leave some tensors aligned and others not.
LAYOUTS = {
    "padded": ((8, 0), (16, 0), (64, 0)),
    "odd stride": ((1, 0), (3, 0), (5, 0)),
    "odd offset": ((8, 1), (8, 3), (8, 5)),
    "input misaligned": ((8, 1), (8, 8), (8, 8)),
    "output misaligned": ((8, 8), (7, 0), (8, 8)),
    "residual misaligned": ((8, 8), (8, 8), (8, 4)),
    "far apart": ((100_000, 8), (50_000, 0), (3, 2)),
}


@pytest.mark.parametrize("hidden", [1, 8, 64, 128, 500, 1024, 5120, 11111])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("op", PLAIN)
def test_strided_rows(op: str, layout: tuple[tuple[int, int], ...], hidden: int) -> None:
    (pad, offset), (out_pad, out_offset), _ = layout
    values, weight = randn(17, hidden, dtype=torch.bfloat16), randn(hidden, dtype=torch.bfloat16)
    x = embed_rows(values, pad=pad, offset=offset)
    out = embed_rows(values, pad=out_pad, offset=out_offset, poisoned=True)
    check_plain(op, x.view, weight, out=out.view)
    out.assert_guards_intact()
    assert_same_bits(x.view, values, "the input")


@pytest.mark.parametrize("hidden", [1, 8, 64, 128, 500, 1024, 5120, 11111])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("op", FUSED)
def test_fused_strided_rows(op: str, layout: tuple[tuple[int, int], ...], hidden: int) -> None:
    (pad, offset), _, (residual_pad, residual_offset) = layout
    x = embed_rows(randn(17, hidden, dtype=torch.float16), pad=pad, offset=offset)
    residual = embed_rows(randn(17, hidden, dtype=torch.float16), pad=residual_pad, offset=residual_offset)
    check_fused(op, x.view, residual.view, randn(hidden, dtype=torch.float16))
    x.assert_guards_intact()
    residual.assert_guards_intact()


@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("hidden", [64, 128, 1024, 5120])
@pytest.mark.parametrize("op", PLAIN + FUSED)
def test_misaligned_weight(op: str, hidden: int, offset: int) -> None:
    weight = randn(hidden + 8, dtype=torch.bfloat16)[offset : offset + hidden]
    x = randn(7, hidden, dtype=torch.bfloat16)
    if op in FUSED:
        check_fused(op, x, randn(7, hidden, dtype=torch.bfloat16), weight)
    else:
        check_plain(op, x, weight)


@pytest.mark.parametrize("hidden", [128, 4096])
def test_broadcast_input_rows(hidden: int) -> None:
    """A row stride of 0: one row, read by every token."""
    x = randn(1, hidden, dtype=torch.bfloat16).expand(5, hidden)
    out = torch.empty(5, hidden, dtype=torch.bfloat16, device=DEVICE)
    check_plain("rmsnorm", x, randn(hidden, dtype=torch.bfloat16), out=out)


@pytest.mark.parametrize("hidden", [7, 128, 1024, 8192, 11111])
@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("op", PLAIN)
def test_nan_and_infinity_stay_in_their_row(op: str, dtype: torch.dtype, hidden: int) -> None:
    x, weight = randn(6, hidden, dtype=dtype), randn(hidden, dtype=dtype)
    x[1, hidden // 2] = torch.nan
    x[2, hidden - 1] = torch.inf  # mean is inf, scale is 0: NaN here, 0 elsewhere
    x[3, 0] = -torch.inf
    x[4] = 0.0
    check_plain(op, x, weight)
    weight[hidden // 3] = torch.nan
    check_plain(op, x, weight)
    weight[hidden // 3] = torch.inf
    check_plain(op, x, weight)


@pytest.mark.parametrize("hidden", [7, 128, 1024, 8192, 11111])
@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("op", FUSED)
def test_fused_nan_and_infinity_stay_in_their_row(op: str, dtype: torch.dtype, hidden: int) -> None:
    x, residual = randn(6, hidden, dtype=dtype), randn(6, hidden, dtype=dtype)
    x[1, hidden // 2] = torch.nan
    residual[2, hidden - 1] = torch.inf
    x[3, 0], residual[3, 0] = torch.inf, -torch.inf
    x[4], residual[4] = 0.0, 0.0
    check_fused(op, x, residual, randn(hidden, dtype=dtype))


@pytest.mark.parametrize("hidden", [64, 1024, 8192])
def test_large_fp16_values_overflow_only_where_the_result_does(hidden: int) -> None:
    x = torch.zeros(4, hidden, dtype=torch.float16, device=DEVICE)
    x[0] = 65504.0  # the squares need fp32
    x[1, 0] = 65504.0  # normalised: sqrt(hidden)
    x[2] = 6e-8  # subnormal: eps decides
    x[3, 1::2] = -60000.0
    weight = torch.full((hidden,), 1000.0, dtype=torch.float16, device=DEVICE)
    weight[0] = 30000.0  # 30000 · sqrt(64) is beyond fp16
    check_plain("rmsnorm", x, weight)
    assert sgl_kernel.rmsnorm(x, weight)[1, 0].isinf()


@pytest.mark.parametrize("hidden", [64, 1024, 8191])
def test_fused_normalises_the_unrounded_sum(hidden: int) -> None:
    """60000 + 60000 is infinite in fp16, as the residual; the sum that is normalised is not."""
    x = torch.full((2, hidden), 60000.0, dtype=torch.float16, device=DEVICE)
    residual = x.clone()
    weight = randn(hidden, dtype=torch.float16)
    check_fused("fused_add_rmsnorm", x, residual, weight)
    assert residual.isinf().all()
    assert x.isfinite().all()


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e3, 1e15])
@pytest.mark.parametrize("op", PLAIN)
def test_bf16_range(op: str, scale: float) -> None:
    check_plain(op, randn(7, 5120, dtype=torch.bfloat16, scale=scale), randn(5120, dtype=torch.bfloat16))


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 0.5, 100.0])
@pytest.mark.parametrize("op", PLAIN + FUSED)
def test_eps(op: str, eps: float) -> None:
    x, weight = randn(5, 1024, dtype=torch.float16, scale=0.1), randn(1024, dtype=torch.float16)
    x[2] = 0.0  # with eps 0: 0 · inf, NaN
    if op in FUSED:
        residual = randn(5, 1024, dtype=torch.float16, scale=0.1)
        residual[2] = 0.0
        check_fused(op, x, residual, weight, eps)
    else:
        check_plain(op, x, weight, eps)


@pytest.mark.parametrize("op", PLAIN + FUSED)
def test_eps_defaults_to_1e_6(op: str) -> None:
    x, weight = randn(3, 128, dtype=torch.float16, scale=1e-3), randn(128, dtype=torch.float16)
    results = []
    for eps in ((), (EPS,)):
        rows = x.clone()
        residual = (torch.zeros_like(x),) if op in FUSED else ()
        result = getattr(sgl_kernel, op)(rows, *residual, weight, *eps)
        results.append(rows if op in FUSED else result)
    assert_same_bits(*results, label=op)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    op=st.sampled_from(PLAIN + FUSED),
    tokens=st.integers(1, 300),
    hidden=st.one_of(st.integers(1, 20_000), st.integers(1, 2_500).map(lambda vectors: 8 * vectors)),
    pads=st.tuples(*[st.integers(0, 33)] * 2),
    offsets=st.tuples(*[st.integers(0, 17)] * 2),
    dtype=st.sampled_from(HALVES),
)
def test_any_geometry(
    op: str,
    tokens: int,
    hidden: int,
    pads: tuple[int, int],
    offsets: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    x = embed_rows(randn(tokens, hidden, dtype=dtype), pad=pads[0], offset=offsets[0])
    other = embed_rows(
        randn(tokens, hidden, dtype=dtype), pad=pads[1], offset=offsets[1], poisoned=op in PLAIN
    )
    weight = randn(hidden, dtype=dtype)
    if op in FUSED:
        check_fused(op, x.view, other.view, weight)
    else:
        check_plain(op, x.view, weight, out=other.view)
    x.assert_guards_intact()
    other.assert_guards_intact()


def test_rows_beyond_2_to_the_32_elements() -> None:
    """Three rows each of input, residual and output, the last behind element 2³² of one 8.6 GB buffer."""
    hidden, stride = 4096, (1 << 31) + 64
    buffer = torch.empty(2 * stride + 4 * hidden, dtype=torch.bfloat16, device=DEVICE)
    x, residual, out = (buffer.as_strided((3, hidden), (stride, 1), i * hidden) for i in range(3))
    for rows in (x, residual):
        rows.copy_(randn(3, hidden, dtype=torch.bfloat16))
    weight = randn(hidden, dtype=torch.bfloat16)
    check_plain("rmsnorm", x, weight, out=out)
    check_fused("fused_add_rmsnorm", x, residual, weight)


@pytest.mark.parametrize("hidden", [8, 8192])
def test_more_than_2_to_the_31_elements(hidden: int) -> None:
    """A contiguous 4.3 GB tensor, normalised in place; rows at the ends and around 2³⁰ and 2³¹ elements."""
    tokens = (1 << 31) // hidden + 5
    x = torch.empty(tokens, hidden, dtype=torch.bfloat16, device=DEVICE).normal_()
    edges = [0, tokens // 3, (1 << 30) // hidden, (1 << 31) // hidden, tokens - 1]
    rows = torch.tensor([row + step for row in edges for step in (-1, 0, 1) if 0 <= row + step < tokens])
    rows = rows.unique().to(DEVICE)
    weight = randn(hidden, dtype=torch.bfloat16)
    expected = reference(x[rows].double(), weight, EPS, "rmsnorm")
    sgl_kernel.rmsnorm(x, weight, EPS, out=x)
    assert_close(x[rows], expected, label="rmsnorm, sampled rows")
