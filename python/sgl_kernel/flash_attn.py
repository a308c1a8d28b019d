"""The FlashAttention-3 interface. Its two attention functions are not provided yet."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from sgl_kernel._missing import not_provided

__all__ = ["flash_attn_varlen_func", "flash_attn_with_kvcache", "is_fa3_supported", "maybe_contiguous"]


@functools.lru_cache(maxsize=1)
def is_fa3_supported(device: Any = None) -> bool:
    """Whether the hardware and torch's CUDA could run FlashAttention-3: CUDA 12.3, capability 8.x or 9.x.

    It says nothing of this package: ``sgl_kernel.missing()`` does.
    """
    if torch.version.cuda is None or not torch.cuda.is_available():
        return False
    cuda = tuple(int(part) for part in torch.version.cuda.split(".")[:2])
    return cuda >= (12, 3) and torch.cuda.get_device_capability(device)[0] in (8, 9)


def maybe_contiguous(x: Tensor | None) -> Tensor | None:
    """``x``, copied if the elements of its last dimension are not adjacent."""
    return x.contiguous() if x is not None and x.stride(-1) != 1 else x


@not_provided
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    sinks: Tensor | None = None,
) -> Any:
    """Attention of new tokens over a (paged) cache, optionally appended to first."""


@not_provided
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    sinks: Tensor | None = None,
) -> Any:
    """Attention within packed sequences of different lengths."""
