from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import sgl_kernel
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ._compare import assert_close, assert_same_bits
from ._tensors import DEVICE, HALVES, embed, embed_rows, name, randn

DTYPES = (*HALVES, torch.float32)

# fp16 and bf16: fp32 arithmetic and one rounding. With fp32 output no rounding hides the arithmetic: the
# exponential turns an error of 1 ulp of its argument (below 40 for |x| < 6) into as many ulps of the result.
ULPS = {torch.float16: 1, torch.bfloat16: 1, torch.float32: 128}
# Beyond e^x = 3.4e38 an fp32 gate is 0, where the reference still has x · 2⁻¹²⁸.
FP32_UNDERFLOW = 2.0**-126

# Widths d of an output row. The public functions take rows of a multiple of 16 bytes; the ops take any.
PUBLIC_WIDTHS = (8, 12, 20, 64, 100, 128, 500, 1024, 1028, 3072, 4096, 5120, 8192, 11112, 14336, 25600, 65536)
OTHER_WIDTHS = (1, 2, 7, 111, 129, 257, 8191, 11111)
TOKENS = (0, 1, 2, 3, 7, 17, 99, 989, 4097)
MANY_TOKENS_LIMIT = 1 << 23  # elements of the output; wider rows are tested with fewer of them
SANITIZER_WIDTHS = (7, 12, 64, 128, 1028, 4096, 8191)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    """x/2 · (1 + erf(x/√2)), by erfc, which keeps its digits where 1 + erf cancels."""
    return x / 2 * torch.special.erfc(-x * math.sqrt(0.5))


def gelu_tanh(x: Tensor) -> Tensor:
    """x/2 · (1 + tanh(u)) = x / (1 + e^(-2u)), u = √(2/π) · (x + 0.044715 x³)."""
    return x / (1 + torch.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu_and_mul": silu,
    "gelu_and_mul": gelu,
    "gelu_tanh_and_mul": gelu_tanh,
}


def check_result(op: str, x: Tensor, result: Tensor) -> None:
    gate, up = x.double().chunk(2, -1)
    assert result.dtype == x.dtype
    slack = (gate * up).abs().nan_to_num(0.0, 0.0) * FP32_UNDERFLOW
    assert_close(result, OPS[op](gate) * up, ulps=ULPS[x.dtype], slack=slack, label=op)


def check(op: str, x: Tensor, out: Tensor | None = None) -> None:
    result = getattr(sgl_kernel, op)(x, out)
    assert out is None or result is out
    assert out is not None or result.is_contiguous()
    check_result(op, x, result)


def check_op(op: str, x: Tensor, out: Tensor) -> None:
    """The torch op, which also takes rows that are no multiple of 16 bytes."""
    getattr(torch.ops.sgl_kernel, op)(out, x)
    check_result(op, x, out)


def sizes(widths: tuple[int, ...]) -> Iterator[object]:
    """tokens, width; the small shapes of each kernel carry the sanitizer's mark."""
    for width in widths:
        for tokens in TOKENS:
            if tokens * width <= MANY_TOKENS_LIMIT:
                is_small = tokens == 3 and width in SANITIZER_WIDTHS
                yield pytest.param(tokens, width, marks=[pytest.mark.sanitizer] if is_small else [])


# Enough work to keep the memory busy: other kernels.
STREAMS = [pytest.param(9000, 4104, marks=pytest.mark.sanitizer), (4097, 14336)]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("tokens", "width"), [*sizes(PUBLIC_WIDTHS), *STREAMS])
@pytest.mark.parametrize("op", OPS)
def test_activation(op: str, tokens: int, width: int, dtype: torch.dtype) -> None:
    check(op, randn(tokens, 2 * width, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("tokens", "width"), list(sizes(OTHER_WIDTHS)))
@pytest.mark.parametrize("op", OPS)
def test_widths_that_no_vector_divides(op: str, tokens: int, width: int, dtype: torch.dtype) -> None:
    out = embed_rows(torch.empty(tokens, width, dtype=dtype, device=DEVICE), poisoned=True)
    check_op(op, randn(tokens, 2 * width, dtype=dtype), out.view)
    out.assert_guards_intact()


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("op", OPS)
def test_every_value_of_the_gate(op: str, dtype: torch.dtype) -> None:
    """All 65536 representations, NaNs and infinities too, times 1."""
    gate = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32, device=DEVICE).to(torch.int16).view(dtype)
    gate = gate.reshape(512, 128)
    check(op, torch.cat((gate, torch.ones_like(gate)), -1))


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("op", OPS)
def test_every_value_of_the_factor(op: str, dtype: torch.dtype) -> None:
    up = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32, device=DEVICE).to(torch.int16).view(dtype)
    up = up.reshape(512, 128)
    check(op, torch.cat((torch.full_like(up, 1.7), up), -1))


@pytest.mark.parametrize("op", OPS)
def test_fp32_extremes(op: str) -> None:
    edges = torch.tensor([0.0, 1e-30, 1.0, 20.0, 88.0, 1e5, 3e38, torch.inf, torch.nan], device=DEVICE)
    gate = torch.cat((edges, -edges)).repeat(4)
    up = torch.cat((torch.ones(36, device=DEVICE), torch.full((36,), -2.5, device=DEVICE)))
    expected = OPS[op](gate.double()) * up
    # At 88 the argument of the exponential has an ulp of 8e-6: what matters here is where it ends.
    slack = expected.abs().nan_to_num(0.0, 0.0) * 1e-4 + FP32_UNDERFLOW
    assert_close(getattr(sgl_kernel, op)(torch.cat((gate, up))), expected, slack=slack, label=op)


@pytest.mark.parametrize(
    "shape", [(256,), (1, 256), (2, 3, 256), (2, 1, 5, 256), (0, 4, 256), (3, 0, 256), (3, 0)]
)
@pytest.mark.parametrize("op", OPS)
def test_leading_dimensions(op: str, shape: tuple[int, ...]) -> None:
    result = getattr(sgl_kernel, op)(randn(*shape, dtype=torch.bfloat16))
    assert result.shape == (*shape[:-1], shape[-1] // 2)
    check(op, randn(*shape, dtype=torch.bfloat16))


# (padding, offset) of the rows of input and output, in elements; odd ones leave no vector aligned.
LAYOUTS = {
    "padded": ((8, 0), (24, 8)),
    "odd stride": ((1, 0), (3, 0)),
    "odd offset": ((8, 1), (8, 5)),
    "input misaligned": ((8, 4), (8, 0)),
    "output misaligned": ((8, 0), (8, 2)),
    "far apart": ((100_000, 8), (50_000, 8)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("width", [8, 12, 128, 1028, 4096])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_strided_rows(op: str, layout: tuple[tuple[int, int], ...], width: int, dtype: torch.dtype) -> None:
    (pad, offset), (out_pad, out_offset) = layout
    values = randn(17, 2 * width, dtype=dtype)
    x = embed_rows(values, pad=pad, offset=offset)
    out = embed_rows(values[:, :width], pad=out_pad, offset=out_offset, poisoned=True)
    check(op, x.view, out.view)
    out.assert_guards_intact()
    assert_same_bits(x.view, values, "the input")


@pytest.mark.parametrize("op", OPS)
def test_strided_rows_of_several_leading_dimensions(op: str) -> None:
    """[3, 5, 256] whose rows are 272 apart: one stride for all fifteen."""
    x = embed(randn(3, 5, 256, dtype=torch.float16), (3, 5, 256), (5 * 272, 272, 1), 8, torch.float16)
    out = embed(None, (3, 5, 128), (5 * 136, 136, 1), 0, torch.float16)
    check(op, x.view, out.view)
    out.assert_guards_intact()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    op=st.sampled_from(tuple(OPS)),
    tokens=st.integers(1, 300),
    width=st.one_of(st.integers(1, 20_000), st.integers(1, 2_500).map(lambda vectors: 8 * vectors)),
    pads=st.tuples(*[st.integers(0, 33)] * 2),
    offsets=st.tuples(*[st.integers(0, 17)] * 2),
    dtype=st.sampled_from(DTYPES),
)
def test_any_geometry(
    op: str,
    tokens: int,
    width: int,
    pads: tuple[int, int],
    offsets: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    values = randn(tokens, 2 * width, dtype=dtype)
    x = embed_rows(values, pad=pads[0], offset=offsets[0])
    out = embed_rows(values[:, :width], pad=pads[1], offset=offsets[1], poisoned=True)
    check_op(op, x.view, out.view)
    out.assert_guards_intact()


@pytest.mark.parametrize("width", [4, 3 << 27])
def test_more_than_2_to_the_31_elements(width: int) -> None:
    """4.3 GB in, 2.1 GB out: many short rows, a few very long ones; samples at the ends and around 2³⁰."""
    tokens = (1 << 31) // (2 * width) + 1
    x = torch.empty(tokens, 2 * width, dtype=torch.bfloat16, device=DEVICE).normal_()
    out = torch.full((tokens, width), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    torch.ops.sgl_kernel.silu_and_mul(out, x)
    flat = torch.tensor(
        [0, (1 << 29) - 1, 1 << 29, (1 << 30) - 1, 1 << 30, tokens * width - 1]
    ) + torch.arange(-8, 9).unsqueeze(1)
    flat = flat.clamp(0, tokens * width - 1).unique().to(DEVICE)
    row, column = flat // width, flat % width
    gate, up = x[row, column].double(), x[row, column + width].double()
    assert_close(out[row, column], silu(gate) * up, label="silu_and_mul, sampled")
    assert not out.isnan().any()
