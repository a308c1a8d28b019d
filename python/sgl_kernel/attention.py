"""Decode attention (MLA, lightning) and the merge of partial attention results. None is provided yet."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from torch import Tensor

from sgl_kernel._missing import not_provided

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
def merge_state(
    v_a: Tensor,
    s_a: Tensor,
    v_b: Tensor,
    s_b: Tensor,
    v_merged: Tensor | None = None,
    s_merged: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Merges two partial attention outputs by their log-sum-exps in base 2."""


@not_provided
def merge_state_v2(
    v_a: Tensor,
    s_a: Tensor,
    v_b: Tensor,
    s_b: Tensor,
    v_merged: Tensor | None = None,
    s_merged: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Merges two partial attention outputs by their natural log-sum-exps."""


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
