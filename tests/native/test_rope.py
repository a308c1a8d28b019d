"""The rope family: which kernel for which shape, what the launch carries, what is refused."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ._tensors import INT_MAX, Tensor

ODD = 0x2002  # an address that no vector starts at
OP = "apply_rope_pos_ids_cos_sin_cache"
OPS = [OP]
TOKENS = st.integers(0, 3000) | st.integers(0, INT_MAX)
HEADS = st.integers(1, 200) | st.integers(1, 65535)
# The kernels need a rotary_dim of whole vectors in each half to be aligned.
ROTARY = st.tuples(st.integers(1, 512), st.just(False)) | st.tuples(
    st.integers(1, 64).map(lambda n: 8 * n), st.booleans()
)
MULTIPROCESSORS = st.integers(1, 200)


def test_the_widest_head(native: Any) -> None:
    assert native.rope.max_rotary_dim == 1024
    assert native.rope.max_threads == 512


@settings(deadline=None, max_examples=500)
@given(tokens=TOKENS, heads=HEADS, rotary=ROTARY, multiprocessors=MULTIPROCESSORS)
def test_the_choice_is_enough_and_no_more(
    native: Any, entry_points: Any, tokens: int, heads: int, rotary: tuple[int, bool], multiprocessors: int
) -> None:
    half, aligned = rotary
    index, threads, lanes, heads_per_block, head_blocks = native.rope.choose(
        tokens, heads, 2 * half, aligned, multiprocessors
    )
    name, pairs, _ = native.rope.shapes[index]
    assert name.startswith("vector") == aligned
    assert lanes * pairs == half
    assert threads % 32 == 0
    assert (
        32 <= threads <= entry_points["rope"][f"rope_neox_bf16_{name}"].max_threads == native.rope.max_threads
    )
    assert lanes <= threads
    assert threads < heads_per_block * lanes + 32  # at most a warp has no head
    assert 1 <= heads_per_block <= heads
    assert head_blocks * heads_per_block >= heads > (head_blocks - 1) * heads_per_block
    assert head_blocks <= 65535  # the limit of a grid in y
    assert native.torch.problems() == []


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.sampled_from([1, 1055, 1056, 100_000]),
    heads=st.integers(1, 150),
    rotary=ROTARY,
    multiprocessors=st.sampled_from([1, 132]),
)
def test_every_pair_is_covered_once(
    native: Any, tokens: int, heads: int, rotary: tuple[int, bool], multiprocessors: int
) -> None:
    """The index arithmetic of csrc/kernels/rope.cu for one token, thread by thread."""
    half, aligned = rotary
    index, threads, lanes, heads_per_block, head_blocks = native.rope.choose(
        tokens, heads, 2 * half, aligned, multiprocessors
    )
    unroll = native.rope.shapes[index][2]
    step = threads // lanes
    covered = [bytearray(lanes) for _ in range(heads)]
    for block in range(head_blocks):
        first = block * heads_per_block
        last = min(first + heads_per_block, heads)
        for thread in range(threads):
            own = thread // lanes
            base = first + own if own < step else last
            while base < last:
                for head in range(base, min(base + unroll * step, last), step):
                    covered[head][thread % lanes] += 1
                base += step * unroll
    assert all(row == b"\1" * lanes for row in covered)


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    """Arguments that lead to each kernel that the op can launch."""
    assert op == OP
    for dtype, interleave in itertools.product(("float16", "bfloat16"), (False, True)):
        for tokens, aligned in one_of_each_shape(native).values():
            q = Tensor(tokens, 8, 64, dtype=dtype, address=0x1000 if aligned else ODD)
            yield values(tokens, dtype=dtype, interleave=interleave, q=q)


def one_of_each_shape(native: Any) -> dict[int, tuple[int, bool]]:
    """Shape → (tokens, aligned) that leads to it, for 10 heads of 64 on a GPU of 132 multiprocessors."""
    found: dict[int, tuple[int, bool]] = {}
    for tokens in (1, 1000, 100_000):
        for aligned in (True, False):
            found.setdefault(native.rope.choose(tokens, 10, 64, aligned, 132)[0], (tokens, aligned))
    return found


def test_every_shape_is_chosen_for_something(native: Any) -> None:
    assert sorted(one_of_each_shape(native)) == list(range(len(native.rope.shapes)))


def values(
    tokens: int = 4,
    heads: tuple[int, int] = (8, 2),
    cached: bool = False,
    dtype: str = "bfloat16",
    **changed: Any,
) -> list[Any]:
    """The arguments of the op for heads of 64, all of them rotated, with the named ones replaced."""
    q, k = (Tensor(tokens, count, 64, dtype=dtype) for count in heads)
    arguments: dict[str, Any] = {
        "q": q,
        "k": k,
        "q_rope": q,
        "k_rope": k,
        "cos_sin_cache": Tensor(4096, 64, dtype="float32"),
        "pos_ids": Tensor(tokens, dtype="int64"),
        "interleave": False,
        "enable_pdl": False,
        "cuda_stream": 0,
        "v": k if cached else None,
        "k_buffer": Tensor(1000, heads[1], 64, dtype=dtype) if cached else None,
        "v_buffer": Tensor(1000, heads[1], 64, dtype=dtype) if cached else None,
        "kv_cache_loc": Tensor(tokens, dtype="int64") if cached else None,
    }
    assert set(changed) <= set(arguments)
    return list((arguments | changed).values())


def like(x: str, heads: int, owner: str) -> list[tuple[dict[str, Any], str]]:
    """What a tensor that must look like q or k can have wrong."""
    return [
        ({x: Tensor(4, 64)}, f"{x}: expected 3-D [tokens, heads, head_size], got 2-D [4, 64]"),
        ({x: Tensor(4, heads + 1, 64)}, f"{x}.size(1): expected {heads} ({owner}), got {heads + 1}"),
        ({x: Tensor(4, heads, 32)}, f"{x}.size(2): expected 64 ({owner}), got 32"),
        ({x: Tensor(4, heads, 64, dtype="float16")}, f"{x}: expected bfloat16 ({owner}), got float16"),
        (
            {x: Tensor(4, heads, 64, device="cuda:1")},
            f"{x}: expected a tensor on cuda:0 ({owner}), got one on cuda:1",
        ),
        ({x: Tensor(4, heads, 64, strides=[2048, 256, 2])}, f"{x}.stride(-1): expected 1, got 2"),
    ]


def tokens_of(x: str, heads: int, owner: str) -> tuple[dict[str, Any], str]:
    return ({x: Tensor(5, heads, 64)}, f"{x}.size(0): expected 4 ({owner}), got 5")


FOUR = "v, k_buffer, v_buffer, kv_cache_loc: expected all four or none, got {} of them"
ROTARY_DIM = "cos_sin_cache.size(1): expected an even rotary_dim of 2 to head_size ({}), at most 1024, got {}"
TOO_LARGE = "q: expected fewer than 2^31 tokens, 2^16 heads and a head_size of at most 65536, got {}"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"q": Tensor(4, 512)}, "q: expected 3-D [tokens, heads, head_size], got 2-D [4, 512]"),
    ({"q": Tensor(4, 8, 64, dtype="float32")}, "q: expected float16 or bfloat16, got float32"),
    ({"q": Tensor(4, 8, 64, strides=[2048, 256, 4])}, "q.stride(-1): expected 1, got 4"),
    ({"k": Tensor(4, 128)}, "k: expected 3-D [tokens, heads, head_size], got 2-D [4, 128]"),
    ({"k": Tensor(5, 2, 64)}, "k.size(0): expected 4 (q.size(0)), got 5"),
    ({"k": Tensor(4, 2, 32)}, "k.size(2): expected 64 (q.size(2)), got 32"),
    ({"k": Tensor(4, 2, 64, dtype="float16")}, "k: expected bfloat16 (dtype of q), got float16"),
    (
        {"k": Tensor(4, 2, 64, device="cpu")},
        "k: expected a tensor on cuda:0 (device of q), got one on cpu",
    ),
    ({"k": Tensor(4, 2, 64, strides=[512, 128, 2])}, "k.stride(-1): expected 1, got 2"),
    *like("q_rope", 8, "q's"),
    tokens_of("q_rope", 8, "q's"),
    *like("k_rope", 2, "k's"),
    tokens_of("k_rope", 2, "k's"),
    (
        {"cos_sin_cache": Tensor(64, dtype="float32")},
        "cos_sin_cache: expected 2-D [max_position, rotary_dim], got 1-D [64]",
    ),
    (
        {"cos_sin_cache": Tensor(4096, 64)},
        "cos_sin_cache: expected float32 (cosines and sines), got bfloat16",
    ),
    (
        {"cos_sin_cache": Tensor(4096, 64, dtype="float32", device="cuda:1")},
        "cos_sin_cache: expected a tensor on cuda:0 (device of q), got one on cuda:1",
    ),
    (
        {"cos_sin_cache": Tensor(4096, 64, dtype="float32", strides=[128, 2])},
        "cos_sin_cache.stride(-1): expected 1, got 2",
    ),
    (
        {"cos_sin_cache": Tensor(4096, 64, dtype="float32", strides=[128, 1])},
        "cos_sin_cache.stride(0): expected 64 (contiguous), got 128",
    ),
    *[
        ({"cos_sin_cache": Tensor(4096, dim, dtype="float32")}, ROTARY_DIM.format(64, dim))
        for dim in (0, 1, 63, 66)
    ],
    ({"pos_ids": Tensor(4, 1, dtype="int64")}, "pos_ids: expected 1-D [tokens], got 2-D [4, 1]"),
    ({"pos_ids": Tensor(5, dtype="int64")}, "pos_ids.size(0): expected 4 (q.size(0)), got 5"),
    ({"pos_ids": Tensor(4, dtype="float32")}, "pos_ids: expected int32 or int64, got float32"),
    (
        {"pos_ids": Tensor(4, dtype="int32", device="cpu")},
        "pos_ids: expected a tensor on cuda:0 (device of q), got one on cpu",
    ),
    ({"pos_ids": Tensor(4, dtype="int64", strides=[2])}, "pos_ids.stride(-1): expected 1, got 2"),
    ({"v": Tensor(4, 2, 64)}, FOUR.format(1)),
    ({"v": Tensor(4, 2, 64), "kv_cache_loc": Tensor(4, dtype="int64")}, FOUR.format(2)),
]
REFUSED_WITH_A_CACHE: list[tuple[dict[str, Any], str]] = [
    ({"k_buffer": None}, FOUR.format(3)),
    *like("v", 2, "k's"),
    tokens_of("v", 2, "k's"),
    *like("k_buffer", 2, "k's"),
    *like("v_buffer", 2, "k's"),
    (
        {"v_buffer": Tensor(999, 2, 64)},
        "v_buffer.size(0): expected 1000 (k_buffer.size(0)), got 999",
    ),
    ({"kv_cache_loc": Tensor(4, 1, dtype="int64")}, "kv_cache_loc: expected 1-D [tokens], got 2-D [4, 1]"),
    ({"kv_cache_loc": Tensor(5, dtype="int64")}, "kv_cache_loc.size(0): expected 4 (k.size(0)), got 5"),
    (
        {"kv_cache_loc": Tensor(4, dtype="int32")},
        "kv_cache_loc: expected int64 (a row of the buffers for each token), got int32",
    ),
    (
        {"kv_cache_loc": Tensor(4, dtype="int64", device="cpu")},
        "kv_cache_loc: expected a tensor on cuda:0 (device of q), got one on cpu",
    ),
    ({"kv_cache_loc": Tensor(4, dtype="int64", strides=[3])}, "kv_cache_loc.stride(-1): expected 1, got 3"),
]


@pytest.mark.parametrize(
    ("cached", "changed", "message"),
    [
        pytest.param(cached, changed, f"{OP}: {text}", id=text)
        for cached, cases in ((False, REFUSED), (True, REFUSED_WITH_A_CACHE))
        for changed, text in cases
    ],
)
def test_what_is_refused(native: Any, cached: bool, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        native.torch.call(OP, values(cached=cached, **changed))


@pytest.mark.parametrize(
    ("tokens", "heads", "head_size", "rotary_dim", "message"),
    [
        (2**31, (8, 2), 64, 64, TOO_LARGE.format("[2147483648, 8, 64]")),
        (1, (65535, 1), 64, 64, TOO_LARGE.format("[1, 65535, 64]")),
        (1, (8, 2), 65537, 64, TOO_LARGE.format("[1, 8, 65537]")),
        (
            1,
            (30000, 2768),
            65536,
            64,
            "q: expected a token of fewer than 2^31 elements, k's included, got [1, 30000, 65536]",
        ),
        (1, (8, 2), 2048, 1026, ROTARY_DIM.format(2048, 1026)),
    ],
)
def test_sizes_beyond_the_kernels(
    native: Any, tokens: int, heads: tuple[int, int], head_size: int, rotary_dim: int, message: str
) -> None:
    q, k = (Tensor(tokens, count, head_size) for count in heads)
    cache = Tensor(10, rotary_dim, dtype="float32")
    arguments = values(
        q=q, k=k, q_rope=q, k_rope=k, cos_sin_cache=cache, pos_ids=Tensor(tokens, dtype="int32")
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'{OP}: {message}')}$"):
        native.torch.call(OP, arguments)


@pytest.mark.parametrize(("tokens", "heads"), [(0, (8, 2)), (4, (0, 0))])
@pytest.mark.parametrize("cached", [False, True])
def test_nothing_to_do_needs_no_driver(
    native: Any, tokens: int, heads: tuple[int, int], cached: bool
) -> None:
    native.torch.call(OP, values(tokens, heads, cached))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("interleave", [False, True])
def test_every_shape_is_launched(gpu: Any, dtype: str, interleave: bool) -> None:
    kind = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    style = "interleaved" if interleave else "neox"
    for shape, (tokens, aligned) in one_of_each_shape(gpu).items():
        changed: dict[str, Any] = (
            {} if aligned else {"q_rope": Tensor(tokens, 8, 64, dtype=dtype, address=ODD)}
        )
        gpu.torch.call(OP, values(tokens, dtype=dtype, interleave=interleave, **changed))
        (launch,) = gpu.driver.launches()
        _, threads, lanes, heads_per_block, head_blocks = gpu.rope.choose(tokens, 10, 64, aligned, 132)
        assert launch["kernel"] == f"rope_{style}_{kind}_{gpu.rope.shapes[shape][0]}"
        assert (launch["grid"], launch["block"]) == ((tokens, head_blocks, 1), (threads, 1, 1))
        assert (launch["shared_bytes"], launch["cluster"]) == (0, (1, 1, 1))
        params = launch["params"]
        assert (params["lanes"], params["heads_per_block"]) == (lanes, heads_per_block)


def heads_of(tensor: Tensor | None) -> dict[str, int]:
    if tensor is None:
        return {"data": 0, "token_stride": 0, "head_stride": 0}
    return {"data": tensor.address, "token_stride": tensor.strides[0], "head_stride": tensor.strides[1]}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("enable_pdl", [False, True])
def test_what_a_launch_carries(gpu: Any, cached: bool, enable_pdl: bool) -> None:
    q = Tensor(4, 8, 64, strides=[10_000, 72, 1], address=0x10000)
    k = Tensor(4, 2, 64, strides=[10_000, 80, 1], address=0x20000)
    q_rope = Tensor(4, 8, 64, strides=[2**40, 64, 1], address=0x30000)
    k_rope = Tensor(4, 2, 64, strides=[128, 64, 1], address=0x40000)
    cos_sin_cache = Tensor(4096, 32, dtype="float32", address=0x50000)
    pos_ids = Tensor(4, dtype="int32", address=0x60004)
    cache: dict[str, Any] = dict.fromkeys(("v", "k_buffer", "v_buffer", "kv_cache_loc"))
    if cached:
        cache = {
            "v": Tensor(4, 2, 64, strides=[10_000, 64, 1], address=0x70000),
            "k_buffer": Tensor(1000, 2, 64, address=0x80000),
            "v_buffer": Tensor(1000, 2, 64, strides=[256, 128, 1], address=0x90000),
            "kv_cache_loc": Tensor(4, dtype="int64", address=0xA0008),
        }
    given_tensors: dict[str, Any] = {
        "q": q,
        "k": k,
        "q_rope": q_rope,
        "k_rope": k_rope,
        "cos_sin_cache": cos_sin_cache,
        "pos_ids": pos_ids,
    }
    gpu.torch.call(OP, values(enable_pdl=enable_pdl, cuda_stream=0xBAD, **given_tensors, **cache))
    (launch,) = gpu.driver.launches()
    assert launch["stream"] == 0x5000  # torch's, not the argument
    assert launch["is_pdl"] == enable_pdl
    params = launch["params"]
    for name, tensor in {
        "q_in": q,
        "k_in": k,
        "q_out": q_rope,
        "k_out": k_rope,
        "k_cache": cache["k_buffer"],
        "v_cache": cache["v_buffer"],
        "v_in": cache["v"],
    }.items():
        assert params.pop(name) == heads_of(tensor), name
    del params["lanes"], params["heads_per_block"]
    assert params == {
        "cos_sin": 0x50000,
        "position": 0x60004,
        "cache_slot": 0xA0008 if cached else 0,
        "max_position": 4096,
        "cache_slots": 1000 if cached else 0,
        "q_heads": 8,
        "k_heads": 2,
        "head_size": 64,
        "rotary_dim": 32,
        "is_position_64": False,
        "is_in_place": False,
    }


def test_in_place(gpu: Any) -> None:
    gpu.torch.call(OP, values())
    gpu.torch.call(OP, values(q_rope=Tensor(4, 8, 64, address=0x1000)))
    gpu.torch.call(OP, values(k_rope=Tensor(4, 2, 64, address=0x1000)))
    params = [launch["params"] for launch in gpu.driver.launches()]
    assert [p["is_in_place"] for p in params] == [True, False, False]
    assert all(p["is_position_64"] for p in params)


@pytest.mark.parametrize(
    "changed",
    [
        {"q": Tensor(4, 8, 64, address=ODD)},
        {"q": Tensor(4, 8, 64, strides=[513, 64, 1])},
        {"q": Tensor(4, 8, 64, strides=[1024, 65, 1])},
        {"k": Tensor(4, 2, 64, address=ODD)},
        {"k_rope": Tensor(4, 2, 64, address=ODD)},
        {"v": Tensor(4, 2, 64, address=ODD)},
        {"k_buffer": Tensor(1000, 2, 64, address=ODD)},
        {"v_buffer": Tensor(1000, 2, 64, strides=[130, 64, 1])},
        {"cos_sin_cache": Tensor(4096, 64, dtype="float32", address=0x2004)},
        {"cos_sin_cache": Tensor(4096, 56, dtype="float32")},
    ],
    ids=str,
)
def test_unaligned_heads_go_element_by_element(gpu: Any, changed: dict[str, Any]) -> None:
    gpu.torch.call(OP, values(cached=True, **changed))
    (launch,) = gpu.driver.launches()
    assert launch["kernel"] == "rope_neox_bf16_element_1"


def test_aligned_heads_go_vector_by_vector(gpu: Any) -> None:
    gpu.torch.call(OP, values(cached=True))
    (launch,) = gpu.driver.launches()
    assert launch["kernel"].startswith("rope_neox_bf16_vector_")
