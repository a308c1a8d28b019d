from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import sgl_kernel
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sgl_kernel import FusedSetKVBufferArg
from torch import Tensor

from ._compare import assert_close, assert_same_bits
from ._tensors import DEVICE, HALVES, Embedded, embed, name, randn

MAX_POSITION = 4096
# (head_size, rotary_dim)
HEADS = ((64, 64), (256, 128), (512, 128), (128, 128), (80, 80), (128, 64), (96, 32))
ODD_HEADS = ((2, 2), (7, 6), (100, 50), (111, 2), (129, 128), (512, 512), (1024, 1024))
TOKENS = (0, 1, 2, 3, 7, 17, 99, 989, 4097)


def make_cache(rotary_dim: int, max_position: int = MAX_POSITION) -> Tensor:
    """[max_position, rotary_dim]: cosines, then sines, of angles as models have them."""
    frequencies = 10000.0 ** -(
        torch.arange(rotary_dim // 2, device=DEVICE).double() / max(rotary_dim // 2, 1)
    )
    angles = torch.arange(max_position, device=DEVICE).double().unsqueeze(1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), -1).float()


def make_positions(tokens: int, dtype: torch.dtype = torch.int64, limit: int = MAX_POSITION) -> Tensor:
    return torch.randint(limit, (tokens,), device=DEVICE).to(dtype)


def reference(x: Tensor, positions: Tensor, cache: Tensor, is_neox: bool) -> tuple[Tensor, Tensor]:
    """``x`` [tokens, heads, head_size] rotated in float64, and the error that fp32 may make.

    The two products may cancel: each is off by at most 2⁻²⁴ of itself, and so is their sum.
    """
    half = cache.size(1) // 2
    cos, sin = cache[positions.long()].double().unsqueeze(1).split(half, -1)
    first, second = (slice(0, half), slice(half, 2 * half))
    if not is_neox:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    expected, slack = x.double(), torch.zeros_like(x, dtype=torch.float64)
    x1, x2 = expected[..., first].clone(), expected[..., second].clone()
    expected[..., first], slack[..., first] = x1 * cos - x2 * sin, (x1 * cos).abs() + (x2 * sin).abs()
    expected[..., second], slack[..., second] = x2 * cos + x1 * sin, (x2 * cos).abs() + (x1 * sin).abs()
    return expected, slack.nan_to_num(0.0, 0.0) * 2.0**-22


@dataclass
class Heads:
    """q and k as the test looks at them, [tokens, heads, head_size], whatever their strides."""

    q: Tensor
    k: Tensor
    cache: Tensor
    positions: Tensor
    is_neox: bool

    def check(self, run: Callable[[], object]) -> None:
        """Runs the op and compares both results; elements beyond rotary_dim stay bit for bit."""
        rotary_dim = self.cache.size(1)
        before = {"query": self.q.clone(), "key": self.k.clone()}
        assert run() is None
        for label, result in (("query", self.q), ("key", self.k)):
            expected, slack = reference(before[label], self.positions, self.cache, self.is_neox)
            assert_close(result, expected, slack=slack, label=label)
            assert_same_bits(
                result[..., rotary_dim:], before[label][..., rotary_dim:], f"{label}, not rotated"
            )

    def apply(self, query: Tensor, key: Tensor, fused: FusedSetKVBufferArg | None = None) -> None:
        """Calls the public function with ``query`` and ``key``, tensors that share memory with q and k."""
        self.check(
            lambda: sgl_kernel.apply_rope_with_cos_sin_cache_inplace(
                self.positions, query, key, self.q.size(2), self.cache, self.is_neox, fused
            )
        )


def make_heads(
    tokens: int,
    q_heads: int,
    k_heads: int,
    head_size: int,
    rotary_dim: int,
    dtype: torch.dtype,
    is_neox: bool,
) -> Heads:
    q, k = (randn(tokens, heads, head_size, dtype=dtype) for heads in (q_heads, k_heads))
    return Heads(q, k, make_cache(rotary_dim), make_positions(tokens), is_neox)


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("head_size", "rotary_dim"), HEADS)
def test_flat_query_and_key(
    head_size: int, rotary_dim: int, tokens: int, dtype: torch.dtype, is_neox: bool
) -> None:
    """[tokens, heads * head_size], as SGLang passes them."""
    heads = make_heads(tokens, 8, 2, head_size, rotary_dim, dtype, is_neox)
    heads.apply(heads.q.view(tokens, 8 * head_size), heads.k.view(tokens, 2 * head_size))


@pytest.mark.sanitizer
@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize(("head_size", "rotary_dim"), HEADS + ODD_HEADS)
def test_three_dimensions(head_size: int, rotary_dim: int, dtype: torch.dtype, is_neox: bool) -> None:
    heads = make_heads(5, 3, 3, head_size, rotary_dim, dtype, is_neox)
    heads.apply(heads.q, heads.k)


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("tokens", [1, 3, 2048])
@pytest.mark.parametrize(
    ("q_heads", "k_heads"), [(1, 1), (64, 8), (8, 64), (1, 16), (40, 1), (0, 4), (4, 0), (7, 3)]
)
def test_head_counts(q_heads: int, k_heads: int, tokens: int, is_neox: bool) -> None:
    heads = make_heads(tokens, q_heads, k_heads, 128, 128, torch.bfloat16, is_neox)
    heads.apply(heads.q, heads.k)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16], ids=name)
@pytest.mark.parametrize("tokens", [3, 2048])
def test_position_dtypes(tokens: int, dtype: torch.dtype) -> None:
    heads = make_heads(tokens, 4, 2, 128, 128, torch.bfloat16, True)
    heads.positions = make_positions(tokens, dtype)
    heads.apply(heads.q, heads.k)


def test_equal_first_and_last_positions() -> None:
    heads = make_heads(6, 4, 2, 64, 64, torch.float16, True)
    heads.positions = torch.tensor([0, 0, 1, MAX_POSITION - 1, MAX_POSITION - 1, 0], device=DEVICE)
    heads.apply(heads.q, heads.k)


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("tokens", [3, 2048])
@pytest.mark.parametrize(("head_size", "rotary_dim"), HEADS)
def test_views_of_a_packed_projection(head_size: int, rotary_dim: int, tokens: int, is_neox: bool) -> None:
    """q and k are slices of one [tokens, (q + 2 · kv heads) · head_size]; v, behind them, stays."""
    q_width, k_width = 8 * head_size, 2 * head_size
    qkv = embed(
        randn(tokens, q_width + 2 * k_width, dtype=torch.bfloat16),
        (tokens, q_width + 2 * k_width),
        (q_width + 2 * k_width + 8, 1),
        8,
        torch.bfloat16,
    )
    q, k, v = qkv.view.split([q_width, k_width, k_width], -1)
    v_before = v.clone()
    heads = Heads(
        *(q.view(tokens, 8, head_size), k.view(tokens, 2, head_size)),
        *(make_cache(rotary_dim), make_positions(tokens), is_neox),
    )
    heads.apply(q, k)
    assert_same_bits(v, v_before, "the value")
    qkv.assert_guards_intact()


# (token stride, head stride, offset) as functions of heads and head_size: slices of wider heads (MLA), heads
# outermost, and geometries in which no vector is aligned.
STRIDES: dict[str, Callable[[int, int, int], tuple[int, int, int]]] = {
    "wider heads": lambda tokens, heads, size: (heads * (size + 64), size + 64, 64),
    "heads outermost": lambda tokens, heads, size: (size, tokens * size, 0),
    "odd token stride": lambda tokens, heads, size: (heads * size + 1, size, 0),
    "odd head stride": lambda tokens, heads, size: (heads * (size + 3), size + 3, 0),
    "odd offset": lambda tokens, heads, size: (heads * size, size, 5),
    "far apart": lambda tokens, heads, size: (heads * size + 100_000, size + 8, 16),
}


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("layout", STRIDES.values(), ids=STRIDES)
@pytest.mark.parametrize(("head_size", "rotary_dim"), [(128, 128), (256, 128), (96, 32), (111, 2)])
def test_strides(
    head_size: int, rotary_dim: int, layout: Callable[[int, int, int], tuple[int, int, int]], is_neox: bool
) -> None:
    q, k = (strided(17, heads, head_size, torch.float16, layout) for heads in (6, 2))
    heads = Heads(q.view, k.view, make_cache(rotary_dim), make_positions(17), is_neox)
    heads.apply(q.view, k.view)
    q.assert_guards_intact()
    k.assert_guards_intact()


def strided(
    tokens: int,
    heads: int,
    head_size: int,
    dtype: torch.dtype,
    layout: Callable[[int, int, int], tuple[int, int, int]],
    poisoned: bool = False,
) -> Embedded:
    *strides, offset = layout(tokens, heads, head_size)
    values = None if poisoned else randn(tokens, heads, head_size, dtype=dtype)
    return embed(values, (tokens, heads, head_size), (*strides, 1), offset, dtype)


@pytest.mark.sanitizer
@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("layout", ["wider heads", "odd offset"])
@pytest.mark.parametrize("tokens", [3, 1500])
@pytest.mark.parametrize(("head_size", "rotary_dim"), [(128, 128), (256, 128), (96, 32), (80, 80)])
def test_the_op_out_of_place(
    head_size: int, rotary_dim: int, tokens: int, layout: str, is_neox: bool
) -> None:
    """Other strides for the results than for the inputs, which stay as they are; the tail is copied."""
    shapes = ((tokens, 6, head_size), (tokens, 2, head_size))
    q, k = (randn(*shape, dtype=torch.bfloat16) for shape in shapes)
    q_out, k_out = (strided(*shape, torch.bfloat16, STRIDES[layout], poisoned=True) for shape in shapes)
    cache, positions = make_cache(rotary_dim), make_positions(tokens)
    before = q.clone(), k.clone()
    torch.ops.sgl_kernel.apply_rope_pos_ids_cos_sin_cache(
        *(q, k, q_out.view, k_out.view, cache, positions, not is_neox, False, 0, None, None, None, None)
    )
    assert_same_bits(q, before[0], "q")
    assert_same_bits(k, before[1], "k")
    for label, x, out in (("q_rope", q, q_out), ("k_rope", k, k_out)):
        expected, slack = reference(x, positions, cache, is_neox)
        assert_close(out.view, expected, slack=slack, label=label)
        out.assert_guards_intact()


@pytest.mark.sanitizer
@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("slot_pad", [0, 8, 3])
@pytest.mark.parametrize("tokens", [0, 1, 7, 1500])
@pytest.mark.parametrize(("head_size", "rotary_dim"), [(64, 64), (128, 64), (96, 32), (80, 80)])
def test_keys_and_values_go_to_their_slots(
    head_size: int, rotary_dim: int, tokens: int, slot_pad: int, is_neox: bool
) -> None:
    """The cache gets the rotated key and any bits of the value; slots of no token stay as they are."""
    slots, width = 2 * tokens + 3, 2 * head_size
    buffers = [
        embed(None, (slots, width), (width + slot_pad, 1), slot_pad, torch.bfloat16) for _ in ("key", "value")
    ]
    bits = torch.randint(-(1 << 15), 1 << 15, (tokens, 3 * width), device=DEVICE, dtype=torch.int32)
    value = bits.to(torch.int16).view(torch.bfloat16)[:, width : 2 * width]  # strided; NaNs of every kind
    slot_of = torch.randperm(slots, device=DEVICE)[:tokens]
    heads = make_heads(tokens, 6, 2, head_size, rotary_dim, torch.bfloat16, is_neox)
    expected = [buffer.view.clone() for buffer in buffers]
    heads.apply(
        heads.q.view(tokens, 6 * head_size),
        heads.k.view(tokens, width),
        FusedSetKVBufferArg(value, buffers[0].view, buffers[1].view, None, None, slot_of),
    )
    for label, buffer, slots_after, rows in zip(
        ("k_buffer", "v_buffer"), buffers, expected, (heads.k.view(tokens, width), value), strict=True
    ):
        slots_after[slot_of] = rows
        assert_same_bits(buffer.view, slots_after, label)
        buffer.assert_guards_intact()


def test_a_negative_slot_is_not_stored() -> None:
    """Padding tokens of a batch carry slot -1."""
    heads = make_heads(3, 4, 2, 64, 64, torch.bfloat16, True)
    k_buffer = torch.zeros(4, 2, 64, dtype=torch.bfloat16, device=DEVICE)
    v_buffer, value = torch.zeros_like(k_buffer), randn(3, 128, dtype=torch.bfloat16)
    slot_of = torch.tensor([2, -1, 0], device=DEVICE)
    fused = FusedSetKVBufferArg(value, k_buffer.view(4, 128), v_buffer.view(4, 128), None, None, slot_of)
    heads.apply(heads.q, heads.k, fused)
    assert_same_bits(k_buffer[[2, 0]], heads.k[[0, 2]], "k_buffer")
    assert_same_bits(v_buffer[[2, 0]], value.view(3, 2, 64)[[0, 2]], "v_buffer")
    assert not k_buffer[[1, 3]].any()
    assert not v_buffer[[1, 3]].any()


def test_a_position_outside_the_cache_gives_nan() -> None:
    heads = make_heads(4, 4, 2, 128, 64, torch.bfloat16, True)
    query = heads.q.clone()
    positions = torch.tensor([5, -1, MAX_POSITION, 7], device=DEVICE)
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, query, heads.k, 128, heads.cache)
    assert query[[1, 2], :, :64].isnan().all()
    assert_same_bits(query[..., 64:], heads.q[..., 64:], "not rotated")
    rows = torch.tensor([0, 3], device=DEVICE)
    expected, slack = reference(heads.q[rows], positions[rows], heads.cache, True)
    assert_close(query[rows], expected, slack=slack, label="query")


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("dtype", HALVES, ids=name)
def test_nan_and_infinity_stay_in_their_pair(dtype: torch.dtype, is_neox: bool) -> None:
    heads = make_heads(5, 4, 2, 128, 64, dtype, is_neox)
    heads.positions = torch.tensor([1, 2, 3, 4, 5], device=DEVICE)  # no angle with a zero sine or cosine
    heads.q[0, 1, 3], heads.q[1, 0, 40], heads.q[2, 3, 100] = torch.nan, torch.inf, torch.nan
    heads.k[3, 0, 5], heads.k[4, 1, 63] = -torch.inf, torch.nan
    heads.cache[2, 7] = torch.nan
    heads.cache[4, 32 + 9] = torch.inf
    heads.apply(heads.q, heads.k)


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
def test_fp16_overflows_only_where_the_result_does(is_neox: bool) -> None:
    heads = make_heads(4, 2, 2, 64, 64, torch.float16, is_neox)
    heads.positions = torch.tensor([0, 1, 2, 3], device=DEVICE)
    heads.q[:] = 60000.0
    heads.apply(heads.q, heads.k)
    assert heads.q[0].isfinite().all()  # angle 0
    assert heads.q[1].isinf().any()  # 60000 · (cos 1 + sin 1)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    tokens=st.integers(1, 200),
    heads=st.tuples(st.integers(1, 20), st.integers(1, 9)),
    half=st.integers(1, 160),
    tail=st.one_of(st.just(0), st.integers(0, 70)),
    pads=st.tuples(*[st.integers(0, 9)] * 2),
    offset=st.integers(0, 9),
    is_neox=st.booleans(),
    dtype=st.sampled_from(HALVES),
)
def test_any_geometry(
    tokens: int,
    heads: tuple[int, int],
    half: int,
    tail: int,
    pads: tuple[int, int],
    offset: int,
    is_neox: bool,
    dtype: torch.dtype,
) -> None:
    def layout(_: int, count: int, size: int) -> tuple[int, int, int]:
        return count * (size + pads[1]) + pads[0], size + pads[1], offset

    q, k = (strided(tokens, count, 2 * half + tail, dtype, layout) for count in heads)
    case = Heads(q.view, k.view, make_cache(2 * half), make_positions(tokens), is_neox)
    case.apply(q.view, k.view)
    q.assert_guards_intact()
    k.assert_guards_intact()


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
def test_tokens_beyond_2_to_the_32_elements(is_neox: bool) -> None:
    """Three tokens of q and k, the last ones behind element 2³² of one 8.6 GB buffer."""
    stride = (1 << 31) + 64
    buffer = torch.empty(2 * stride + 4096, dtype=torch.bfloat16, device=DEVICE)
    q = buffer.as_strided((3, 8, 128), (stride, 128, 1), 0)
    k = buffer.as_strided((3, 2, 128), (stride, 128, 1), 2048)
    q.copy_(randn(3, 8, 128, dtype=torch.bfloat16))
    k.copy_(randn(3, 2, 128, dtype=torch.bfloat16))
    Heads(q, k, make_cache(128), make_positions(3), is_neox).apply(q, k)


def test_slots_beyond_2_to_the_31_elements() -> None:
    """Two KV buffers of 4.3 GB each; the tokens go to the first and the last slots."""
    width = 1024
    slots = (1 << 31) // width + 4
    buffers = [torch.empty(slots, width, dtype=torch.bfloat16, device=DEVICE) for _ in ("key", "value")]
    slot_of = torch.tensor([slots - 1, 0, slots - 2, 1, slots // 2], device=DEVICE)
    heads = make_heads(5, 8, 8, 128, 128, torch.bfloat16, True)
    value = randn(5, width, dtype=torch.bfloat16)
    fused = FusedSetKVBufferArg(value, *buffers, None, None, slot_of)
    heads.apply(heads.q, heads.k, fused)
    assert_same_bits(buffers[0][slot_of], heads.k.view(5, width), "k_buffer")
    assert_same_bits(buffers[1][slot_of], value, "v_buffer")
