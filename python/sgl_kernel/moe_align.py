"""The choices of all tokens, sorted by expert into runs of whole blocks, as a grouped GEMM walks them."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernel._checks import (
    Argument,
    check_contiguous,
    check_device,
    check_dim,
    check_dtype,
    check_dtype_in,
    check_last_stride,
    fail,
)
from sgl_kernel._library import fakes, implements, ops

__all__ = ["moe_align_block_size"]


def moe_align_block_size(
    topk_ids: Tensor,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Tensor,
    experts_ids: Tensor,
    num_tokens_post_pad: Tensor,
    cumsum_buffer: Tensor,
    pad_sorted_token_ids: bool = False,
) -> None:
    """Sorts the choices of all tokens by expert, padded to whole blocks.

    topk_ids: [tokens, topk], any integer dtype: experts, or -1 for a choice that is masked out.
    num_experts: the number of buckets, one more than experts: bucket 0 collects the -1, bucket e + 1 expert
        e. Choices outside of all buckets are left out.
    sorted_token_ids: int32 [size], written: bucket by bucket the flat indices of its choices, ascending,
        then as many entries of ``topk_ids.numel()`` as fill its last block. The caller sets those entries
        beforehand, unless ``pad_sorted_token_ids`` asks for it, which sets all others of the tensor too.
        Entries beyond ``size`` are not written.
    experts_ids: int32, written: the expert of each block, -1 for bucket 0; what is beyond the last block
        stays as it is.
    num_tokens_post_pad: int32 [1], written: the length of all runs together.
    cumsum_buffer: scratch of the API, neither read nor written.

    Raises RuntimeError for other shapes, dtypes and devices.
    """
    if topk_ids.dtype not in _ID_DTYPES:
        topk_ids = topk_ids.to(torch.int32)
    _moe_align_block_size(
        topk_ids,
        num_experts,
        block_size,
        sorted_token_ids,
        experts_ids,
        num_tokens_post_pad,
        cumsum_buffer,
        pad_sorted_token_ids,
    )


_OP = "moe_align_block_size"
_ID_DTYPES = (torch.int32, torch.int64)
_MAX = 65536  # buckets, and choices of a block

_moe_align_block_size = ops.moe_align_block_size.default


def _check(
    topk_ids: Tensor, num_experts: int, block_size: int, outputs: tuple[tuple[str, Tensor], ...]
) -> None:
    ids = Argument(_OP, "topk_ids", topk_ids)
    check_dtype_in(ids, _ID_DTYPES)
    check_contiguous(ids)
    for name, tensor in outputs:
        a = Argument(_OP, name, tensor)
        check_dim(a, 1, "[size]")
        check_dtype(a, torch.int32, "indices")
        check_device(a, topk_ids.device, "device of topk_ids")
        check_last_stride(a)
    if outputs[-1][1].numel() < 1:
        fail(_OP, "num_tokens_post_pad.size(0)", "at least 1", 0)
    if not 1 <= num_experts <= _MAX:
        fail(_OP, "num_experts", f"1 to {_MAX}", num_experts)
    if not 1 <= block_size <= _MAX:
        fail(_OP, "block_size", f"1 to {_MAX}", block_size)


@fakes(_OP)
def _moe_align_fake(
    topk_ids: Tensor,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Tensor,
    experts_ids: Tensor,
    num_tokens_post_pad: Tensor,
    cumsum_buffer: Tensor,
    pad_sorted_token_ids: bool,
) -> None:
    outputs = {"sorted_token_ids": sorted_token_ids, "experts_ids": experts_ids}
    outputs["num_tokens_post_pad"] = num_tokens_post_pad
    _check(topk_ids, num_experts, block_size, tuple(outputs.items()))


@implements(_OP)
def _moe_align_cpu(
    topk_ids: Tensor,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Tensor,
    experts_ids: Tensor,
    num_tokens_post_pad: Tensor,
    cumsum_buffer: Tensor,
    pad_sorted_token_ids: bool,
) -> None:
    outputs = {"sorted_token_ids": sorted_token_ids, "experts_ids": experts_ids}
    outputs["num_tokens_post_pad"] = num_tokens_post_pad
    _check(topk_ids, num_experts, block_size, tuple(outputs.items()))
    bucket = topk_ids.flatten().long() + 1
    choices = ((bucket >= 0) & (bucket < num_experts)).nonzero().flatten()
    bucket = bucket[choices]
    count = torch.bincount(bucket, minlength=num_experts)
    blocks = (count + block_size - 1) // block_size
    end = blocks.cumsum(0) * block_size
    start = end - blocks * block_size
    order = torch.argsort(bucket, stable=True)
    rank = torch.arange(order.numel()) - (count.cumsum(0) - count)[bucket[order]]
    place = start[bucket[order]] + rank
    is_inside = place < sorted_token_ids.numel()

    if pad_sorted_token_ids:
        sorted_token_ids.fill_(topk_ids.numel())
    sorted_token_ids[place[is_inside]] = choices[order][is_inside].to(torch.int32)
    labels = torch.arange(-1, num_experts - 1, dtype=torch.int32).repeat_interleave(blocks)
    labels = labels[: experts_ids.numel()]
    experts_ids[: labels.numel()] = labels
    num_tokens_post_pad[0] = end[-1]
