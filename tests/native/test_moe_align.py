"""The moe_align family: which kernels for which shape, what the launches carry, what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ._tensors import Tensor

OPS = ["moe_align_block_size"]
LIMITS = st.sampled_from([101_376, 166_912, 232_448])  # sm_120, sm_80, sm_90


@given(
    choices=st.integers(1, 20_000) | st.integers(1, 10_000_000),
    buckets=st.integers(1, 600) | st.integers(1, 65_536),
    filled=st.just(0) | st.integers(0, 1_000_000),
    limit=LIMITS,
)
def test_segments_cover_the_choices(native: Any, choices: int, buckets: int, filled: int, limit: int) -> None:
    placers, segment, blocks, shared, is_single = native.moe_align.choose(choices, buckets, filled, limit)
    if placers == 0:
        assert 3 * 4 * buckets > limit - 1024  # one warp's counters and the totals do not fit
        return
    assert is_single == (choices <= 16384)
    assert placers in ((1, 2, 4) if is_single else (1, 2, 4, 8, 16, 32))
    assert shared == (placers + 2) * buckets * 4 <= limit - 1024
    assert segment % (32 * placers) == 0
    segments = -(-choices // segment)
    if is_single:  # each placer has one row; more blocks than segments only fill
        assert segment == 32 * placers
        assert blocks == max(segments, min(-(-filled // 1024), 128))
    else:
        assert blocks == segments <= 128


def align(ids: Tensor, experts: int = 129, block: int = 64, size: int = 50_000) -> list[Any]:
    outputs = [Tensor(n, dtype="int32") for n in (size, size // block + 1, 1, experts + 1)]
    return [ids, experts, block, *outputs, True]


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    del native, op
    for dtype in ("int32", "int64"):
        for tokens in (4, 4096):
            yield align(Tensor(tokens, 8, dtype=dtype))


@pytest.mark.parametrize(
    ("tokens", "size", "blocks"),
    [(1, 8135, 8), (16, 8255, 9), (256, 10_175, 16), (2048, 24_511, 128), (1, 10_000_000, 128)],
)
def test_one_launch_for_few_choices(gpu: Any, tokens: int, size: int, blocks: int) -> None:
    gpu.torch.call(OPS[0], align(Tensor(tokens, 8, dtype="int32"), size=size))
    (launch,) = gpu.driver.launches()
    assert launch["kernel"] == "moe_align_block_size_i32_single"
    assert (launch["grid"], launch["block"], launch["is_pdl"]) == ((blocks, 1, 1), (1024, 1, 1), True)
    assert launch["shared_bytes"] == 6 * 129 * 4
    params = launch["params"]
    assert (params["choices"], params["segment"], params["placers"]) == (8 * tokens, 128, 4)
    assert params["counts"] == 0


def test_blocks_only_for_choices_where_nothing_is_filled(gpu: Any) -> None:
    values = align(Tensor(16, 8, dtype="int32"))
    gpu.torch.call(OPS[0], [*values[:-1], False])
    assert gpu.driver.launches()[0]["grid"] == (1, 1, 1)


def test_two_kernels_for_many(gpu: Any) -> None:
    gpu.torch.call(OPS[0], align(Tensor(4096, 8, dtype="int64")))
    count, place = gpu.driver.launches()
    assert [x["kernel"] for x in (count, place)] == [
        "moe_align_block_size_i64_count",
        "moe_align_block_size_i64_place",
    ]
    assert count["grid"] == place["grid"] == (32, 1, 1)
    assert count["block"] == place["block"] == (1024, 1, 1)
    assert (count["shared_bytes"], place["shared_bytes"]) == (129 * 4, 34 * 129 * 4)
    assert count["params"] == place["params"]
    assert (count["params"]["segment"], count["params"]["placers"]) == (1024, 32)
    assert count["params"]["counts"] != 0


def test_no_choices_are_still_counted(gpu: Any) -> None:
    gpu.torch.call(OPS[0], align(Tensor(0, 8, dtype="int32"), size=100))
    (launch,) = gpu.driver.launches()
    assert launch["grid"] == (1, 1, 1)


IDS = Tensor(4, 8, dtype="int32")
REFUSED = [
    (align(Tensor(4, 8)), "topk_ids: expected int32 or int64, got bfloat16"),
    (
        align(Tensor(4, 8, dtype="int32", strides=[16, 1])),
        "topk_ids: expected a contiguous tensor, got [4, 8] with other strides",
    ),
    (align(IDS, experts=0), "num_experts: expected 1 to 65536, got 0"),
    (align(IDS, block=70_000), "block_size: expected 1 to 65536, got 70000"),
    (
        [IDS, 129, 64, Tensor(9), *align(IDS)[4:]],
        "sorted_token_ids: expected int32 (indices), got bfloat16",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_refused(native: Any, values: list[Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'{OPS[0]}: {message}')}$"):
        native.torch.call(OPS[0], values)


def test_too_many_experts_for_the_shared_memory(gpu: Any) -> None:
    with pytest.raises(
        RuntimeError, match="expected a number whose counters fit into 232448 bytes, got 30000"
    ):
        gpu.torch.call(OPS[0], align(IDS, experts=30_000))
