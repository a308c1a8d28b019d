"""Sums over the GPUs of one node (custom all-reduce) or of several (MSCCL++). None is provided yet."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from torch import Tensor

from sgl_kernel._missing import not_provided

__all__ = [
    "all_reduce",
    "dispose",
    "get_graph_buffer_ipc_meta",
    "init_custom_ar",
    "meta_size",
    "mscclpp_allreduce",
    "mscclpp_generate_unique_id",
    "mscclpp_init_context",
    "register_buffer",
    "register_graph_buffers",
]


@not_provided
def init_custom_ar(ipc_tensors: list[int], rank_data: Tensor, rank: int, full_nvlink: bool) -> int:
    """Sets up a group from the address of every rank's shared block; returns a handle."""


@not_provided
def dispose(fa: int) -> None:
    """Frees what ``init_custom_ar`` made."""


@not_provided
def all_reduce(fa: int, inp: Tensor, out: Tensor, reg_buffer: int, reg_buffer_sz_bytes: int) -> None:
    """``out`` = the sum of ``inp`` over all ranks, the same bits on each."""


@not_provided
def get_graph_buffer_ipc_meta(fa: int) -> tuple[list[int], list[int]]:
    """The IPC handles and offsets of the buffers that a CUDA graph recorded."""


@not_provided
def register_buffer(fa: int, fake_ipc_ptrs: list[int]) -> None:
    """Makes every rank's staging buffer known to the group."""


@not_provided
def register_graph_buffers(fa: int, handles: list[list[int]], offsets: list[list[int]]) -> None:
    """Opens the buffers that the other ranks' CUDA graphs recorded."""


@not_provided
def meta_size() -> int:
    """The bytes of signals at the head of a shared block."""


@not_provided
def mscclpp_generate_unique_id() -> Tensor:
    """An identifier with which the ranks find one another."""


@not_provided
def mscclpp_init_context(
    unique_id: Tensor,
    rank: int,
    world_size: int,
    scratch: Tensor,
    put_buffer: Tensor,
    nranks_per_node: int,
    rank_to_node: list[int],
    rank_to_ib: list[int],
    context_selection: int,
) -> int:
    """Sets up a group of ranks on one node or two; returns a handle."""


@not_provided
def mscclpp_allreduce(context: int, inp: Tensor, out: Tensor, nthreads: int, nblocks: int) -> None:
    """``out`` = the sum of ``inp`` over all ranks."""
