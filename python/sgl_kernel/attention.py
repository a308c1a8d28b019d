"""Decode attention (MLA, lightning; not provided yet) and the merge of partial attention results."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from torch import Tensor

from sgl_kernel._missing import not_provided
from sgl_kernel.merge import merge_state, merge_state_v2

__all__ = [
    "cutlass_mla_decode",
    "cutlass_mla_get_workspace_size",
    "lightning_attention_decode",
    "merge_state",
    "merge_state_v2",
]


@not_provided
def lightning_attention_decode(
    q: Tensor, k: Tensor, v: Tensor, past_kv: Tensor, slope: Tensor, output: Tensor, new_kv: Tensor
) -> None:
    """One step of linear attention with an exponentially decaying state."""


@not_provided
def cutlass_mla_decode(
    q_nope: Tensor,
    q_pe: Tensor,
    kv_c_and_k_pe_cache: Tensor,
    seq_lens: Tensor,
    page_table: Tensor,
    workspace: Tensor,
    sm_scale: float,
    num_kv_splits: int = 1,
) -> Tensor:
    """Multi-head latent attention of one query token per sequence over a paged cache."""


@not_provided
def cutlass_mla_get_workspace_size(
    max_seq_len: int, num_batches: int, sm_count: int = 0, num_kv_splits: int = 1
) -> int:
    """The bytes of workspace that ``cutlass_mla_decode`` needs."""
