"""Building and verifying the token trees of speculative decoding. None is provided yet."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from torch import Tensor

from sgl_kernel._missing import not_provided

__all__ = [
    "build_tree_kernel_efficient",
    "segment_packbits",
    "tree_speculative_sampling_target_only",
    "verify_tree_greedy",
]


@not_provided
def tree_speculative_sampling_target_only(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
    deterministic: bool = True,
) -> None:
    """Accepts a path of each tree by rejection sampling against the target's probabilities."""


@not_provided
def verify_tree_greedy(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    target_predict: Tensor,
) -> None:
    """Accepts the path of each tree that the target's own choices follow."""


@not_provided
def build_tree_kernel_efficient(
    parent_list: Tensor,
    selected_index: Tensor,
    verified_seq_len: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """The attention mask, the positions and the links of the trees of drafted tokens."""


@not_provided
def segment_packbits(
    x: Tensor, input_indptr: Tensor, output_indptr: Tensor, y: Tensor, batch_size: int
) -> None:
    """Packs each segment of booleans into bytes, the lowest bit first."""
