from __future__ import annotations

import pytest
import sgl_kernel
import torch
from torch import Tensor

from ._tensors import DEVICE, name

UNTOUCHED = -7


def expected_of(ids: Tensor, buckets: int, block: int) -> tuple[Tensor, Tensor]:
    """The runs and their labels, on the CPU, bucket by bucket."""
    flat = ids.flatten().cpu()
    runs, labels = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for bucket in range(buckets):
        run = (flat == bucket - 1).nonzero().flatten()
        blocks = -(-run.numel() // block)
        runs += [run, torch.full((blocks * block - run.numel(),), flat.numel())]
        labels.append(torch.full((blocks,), bucket - 1))
    return torch.cat(runs), torch.cat(labels)


def check(ids: Tensor, buckets: int, block: int, is_padded: bool = True) -> None:
    size = ids.numel() + buckets * (block - 1)
    start = UNTOUCHED if is_padded else ids.numel()
    runs = torch.full((size,), start, dtype=torch.int32, device=DEVICE)
    labels = torch.full((size // block + 3,), UNTOUCHED, dtype=torch.int32, device=DEVICE)
    total = torch.full((1,), UNTOUCHED, dtype=torch.int32, device=DEVICE)
    scratch = torch.empty(buckets + 1, dtype=torch.int32, device=DEVICE)
    sgl_kernel.moe_align_block_size(ids, buckets, block, runs, labels, total, scratch, is_padded)
    expected, expected_labels = expected_of(ids, buckets, block)
    assert total.item() == expected.numel()
    assert torch.equal(runs[: expected.numel()].long().cpu(), expected)
    assert (runs[expected.numel() :] == ids.numel()).all()
    assert torch.equal(labels[: expected_labels.numel()].long().cpu(), expected_labels)
    assert (labels[expected_labels.numel() :] == UNTOUCHED).all()


# A block places 128 choices, the choices of 16 tokens; 2048 tokens are the most for one launch.
TOKENS = [0, 1, 3, 16, pytest.param(50, marks=pytest.mark.sanitizer), 256, 257, 1000, 2048]
TOKENS += [pytest.param(2049, marks=pytest.mark.sanitizer), 4096, 16384, 20001]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=name)
@pytest.mark.parametrize(("experts", "block"), [(128, 64), (8, 16), (60, 1), (256, 128), (1, 32)])
@pytest.mark.parametrize("tokens", TOKENS)
def test_align(tokens: int, experts: int, block: int, dtype: torch.dtype) -> None:
    check(torch.randint(-1, experts, (tokens, 8), device=DEVICE).to(dtype), experts + 1, block)


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("tokens", [1, 100, 700, 3000])
def test_padding_by_the_caller_or_the_kernel(tokens: int, is_padded: bool) -> None:
    check(torch.randint(0, 128, (tokens, 8), device=DEVICE), 129, 64, is_padded)


@pytest.mark.parametrize("tokens", [100, 256, 700, 4096])
def test_skewed_choices(tokens: int) -> None:
    ids = torch.full((tokens, 8), 5, device=DEVICE)
    check(ids, 129, 64)
    ids[::2] = -1
    check(ids, 129, 64)
    ids[1, 3] = 127
    check(ids, 129, 64)


@pytest.mark.parametrize("experts", [700, 1500, 5000, 15000])
@pytest.mark.parametrize("tokens", [3, 1000, 3000])
def test_many_experts(tokens: int, experts: int) -> None:
    """Counters of so many buckets leave room for fewer warps."""
    ids = torch.randint(-1, experts, (tokens, 8), device=DEVICE)
    ids[0] = experts - 1
    check(ids.int(), experts + 1, 16)


@pytest.mark.parametrize("tokens", [10, 1000, 3000])
def test_choices_outside_of_all_buckets_are_left_out(tokens: int) -> None:
    ids = torch.randint(-1, 20, (tokens, 8), device=DEVICE)
    ids[0, :4] = torch.tensor([-2, 20, 1 << 40, -(1 << 40)], device=DEVICE)
    check(ids, 21, 16)


def test_small_outputs_are_not_overrun() -> None:
    for tokens in (10, 1000, 3000):
        ids = torch.randint(0, 20, (tokens, 8), device=DEVICE, dtype=torch.int32)
        buffer = torch.full((200,), UNTOUCHED, dtype=torch.int32, device=DEVICE)
        total, scratch = buffer[190:191], buffer[150:180]
        sgl_kernel.moe_align_block_size(ids, 21, 16, buffer[:100], buffer[110:112], total, scratch, True)
        assert (buffer[100:110] == UNTOUCHED).all()
        assert (buffer[112:190] == UNTOUCHED).all()
        assert (buffer[191:] == UNTOUCHED).all()
        runs, labels = expected_of(ids, 21, 16)
        assert total.item() == runs.numel()
        assert torch.equal(buffer[:100].long().cpu(), runs[:100])
        assert torch.equal(buffer[110:112].long().cpu(), labels[:2])


def test_two_streams_at_once() -> None:
    """Scratch belongs to its call."""
    ids = [torch.randint(-1, 128, (4096, 8), device=DEVICE) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in ids]
    torch.cuda.synchronize()
    for _ in range(5):
        for choices, stream in zip(ids, streams, strict=True):
            with torch.cuda.stream(stream):
                check(choices, 129, 64)
