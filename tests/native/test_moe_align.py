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
    choices=st.integers(1, 5000) | st.integers(1, 10_000_000),
    buckets=st.integers(1, 600) | st.integers(1, 65_536),
    limit=LIMITS,
)
def test_segments_cover_the_choices(native: Any, choices: int, buckets: int, limit: int) -> None:
    threads, segment, segments, shared = native.moe_align.choose(choices, buckets, limit)
    if threads == 0:
        assert 3 * 4 * buckets > limit - 1024  # one warp's counters and the totals do not fit
        return
    assert threads in (32, 64, 128, 256, 512, 1024)
    assert shared == (threads // 32 + 2) * buckets * 4 <= limit - 1024
    assert segment % threads == 0
    assert segments * segment >= choices > (segments - 1) * segment
    assert segments <= 128
    assert (segments == 1) >= (choices <= 4096)


def align(ids: Tensor, experts: int = 129, block: int = 64, size: int = 50_000) -> list[Any]:
    outputs = [Tensor(n, dtype="int32") for n in (size, size // block + 1, 1, experts + 1)]
    return [ids, experts, block, *outputs, True]


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    del native, op
    for dtype in ("int32", "int64"):
        for tokens in (4, 4096):
            yield align(Tensor(tokens, 8, dtype=dtype))


def test_one_block_for_few_choices(gpu: Any) -> None:
    gpu.torch.call(OPS[0], align(Tensor(512, 8, dtype="int32")))
    (launch,) = gpu.driver.launches()
    assert launch["kernel"] == "moe_align_block_size_i32_single"
    assert (launch["grid"], launch["block"], launch["is_pdl"]) == ((1, 1, 1), (1024, 1, 1), True)
    assert launch["shared_bytes"] == 34 * 129 * 4
    assert (launch["params"]["choices"], launch["params"]["segment"], launch["params"]["counts"]) == (
        4096,
        4096,
        0,
    )


def test_two_kernels_for_many(gpu: Any) -> None:
    gpu.torch.call(OPS[0], align(Tensor(4096, 8, dtype="int64")))
    count, place = gpu.driver.launches()
    assert [x["kernel"] for x in (count, place)] == [
        "moe_align_block_size_i64_count",
        "moe_align_block_size_i64_place",
    ]
    assert count["grid"] == place["grid"] == (32, 1, 1)
    assert (count["shared_bytes"], place["shared_bytes"]) == (129 * 4, 34 * 129 * 4)
    assert count["params"] == place["params"]
    assert count["params"]["counts"] != 0


def test_no_choices_are_still_counted(gpu: Any) -> None:
    gpu.torch.call(OPS[0], align(Tensor(0, 8, dtype="int32")))
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
