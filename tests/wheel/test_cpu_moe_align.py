from __future__ import annotations

from typing import Any

import pytest
import sgl_kernel
import torch
from torch import Tensor

UNTOUCHED = -7


def expected_of(ids: Tensor, buckets: int, block: int) -> tuple[list[int], list[int]]:
    """The runs and their labels, from the definition."""
    flat, runs, labels = ids.flatten().tolist(), [], []
    for bucket in range(buckets):
        run = [i for i, expert in enumerate(flat) if expert == bucket - 1]
        run += [len(flat)] * (-len(run) % block)
        runs += run
        labels += [bucket - 1] * (len(run) // block)
    return runs, labels


def align(ids: Tensor, buckets: int, block: int, is_padded: bool, size: int | None = None) -> list[list[int]]:
    size = ids.numel() + buckets * (block - 1) if size is None else size
    runs = torch.full((size,), UNTOUCHED, dtype=torch.int32)
    if not is_padded:
        runs.fill_(ids.numel())
    labels = torch.full((size // block + 1,), UNTOUCHED, dtype=torch.int32)
    total, scratch = (
        torch.full((1,), UNTOUCHED, dtype=torch.int32),
        torch.empty(buckets + 1, dtype=torch.int32),
    )
    sgl_kernel.moe_align_block_size(ids, buckets, block, runs, labels, total, scratch, is_padded)
    return [runs.tolist(), labels.tolist(), total.tolist()]


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16])
@pytest.mark.parametrize(
    ("tokens", "topk", "experts", "block"), [(1, 8, 128, 64), (50, 2, 8, 16), (9, 3, 5, 1), (0, 2, 4, 8)]
)
def test_align(tokens: int, topk: int, experts: int, block: int, dtype: torch.dtype, is_padded: bool) -> None:
    ids = torch.randint(-1, experts, (tokens, topk)).to(dtype)
    runs, labels, total = align(ids, experts + 1, block, is_padded)
    expected, expected_labels = expected_of(ids, experts + 1, block)
    assert total == [len(expected)]
    assert runs == expected + [ids.numel()] * (len(runs) - len(expected))
    assert labels == expected_labels + [UNTOUCHED] * (len(labels) - len(expected_labels))


def test_choices_outside_of_all_buckets_are_left_out() -> None:
    ids = torch.tensor([[3, -2, 4, 0, 3]])
    runs, labels, total = align(ids, 5, 2, is_padded=True)
    assert runs == [3, 5, 0, 4] + [5] * 6
    assert labels[:3] == [0, 3, UNTOUCHED]
    assert total == [4]


def test_small_outputs_are_not_overrun() -> None:
    runs, _, total = align(torch.tensor([[0, 1, 1]]), 3, 4, is_padded=True, size=5)
    assert runs == [0, 3, 3, 3, 1]
    assert total == [8]


def test_opcheck() -> None:
    outputs = [torch.zeros(n, dtype=torch.int32) for n in (30, 8, 1, 6)]
    arguments = (torch.tensor([[0, 3], [2, -1]]), 5, 4, *outputs, True)
    torch.library.opcheck(torch.ops.sgl_kernel.moe_align_block_size.default, arguments)


def int32(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


GOOD = {
    "ids": int32(4, 2),
    "experts": 5,
    "block": 4,
    "sorted": int32(30),
    "labels": int32(8),
    "total": int32(1),
}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"ids": torch.zeros(4, 2)}, "topk_ids: expected int32 or int64, got float32"),
    ({"ids": int32(4, 4)[:, ::2]}, "topk_ids: expected a contiguous tensor, got [4, 2] with other strides"),
    ({"experts": 0}, "num_experts: expected 1 to 65536, got 0"),
    ({"block": 0}, "block_size: expected 1 to 65536, got 0"),
    ({"sorted": int32(3, 10)}, "sorted_token_ids: expected 1-D [size], got 2-D [3, 10]"),
    ({"labels": int32(8).long()}, "experts_ids: expected int32 (indices), got int64"),
    ({"total": int32(0)}, "num_tokens_post_pad.size(0): expected at least 1, got 0"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments(changed: dict[str, Any], message: str) -> None:
    arguments = GOOD | changed
    with pytest.raises(RuntimeError) as failure:
        torch.ops.sgl_kernel.moe_align_block_size(*arguments.values(), int32(6), True)
    assert str(failure.value) == f"moe_align_block_size: {message}"
