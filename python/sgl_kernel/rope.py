"""Rotary position embedding of queries and keys, in place, and optionally the store of keys and values.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021. Pair i of the first
``rotary_dim`` elements of a head turns by the angle of its position and frequency i:
``o1 = x1 * cos - x2 * sin``, ``o2 = x2 * cos + x1 * sin``, in float32, rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_kernel._checks import (
    check_device,
    check_dim,
    check_dtype,
    check_last_stride,
    check_like,
    check_size,
    fail,
)
from sgl_kernel._library import fakes, implements, ops
from sgl_kernel.utils import default_pdl

__all__ = ["FusedSetKVBufferArg", "apply_rope_with_cos_sin_cache_inplace"]


@dataclass
class FusedSetKVBufferArg:
    """Where the rotated keys and the values go, besides.

    value: [tokens, kv_heads * head_size].
    k_buffer, v_buffer: [slots, kv_heads * head_size], of the keys' dtype.
    k_scale, v_scale: None; nothing else is supported.
    cache_loc: int64 [tokens], the slot of each token.
    """

    value: Tensor
    k_buffer: Tensor
    v_buffer: Tensor
    k_scale: float | None
    v_scale: float | None
    cache_loc: Tensor


def apply_rope_with_cos_sin_cache_inplace(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool = True,
    fused_set_kv_buffer_arg: FusedSetKVBufferArg | None = None,
    enable_pdl: bool | None = None,
) -> None:
    """Rotates ``query`` and ``key`` in place; with the fused argument also stores keys and values.

    positions: [tokens], any integer dtype.
    query, key: [tokens, heads * head_size] or [tokens, heads, head_size], float16 or bfloat16; any token and
        head strides, last stride 1; the numbers of heads may differ.
    cos_sin_cache: float32 [max_position, rotary_dim], the cosines, then the sines; rotary_dim is even and at
        most head_size; elements past it stay as they are.
    is_neox: pairs are (i, i + rotary_dim / 2), else (2 * i, 2 * i + 1).
    enable_pdl: a launch hint; None: where the GPU has it and keys are stored.

    Raises ValueError if cos_sin_cache is not float32, AssertionError if a scale is given or cache_loc is not
    int64, RuntimeError for the rest.
    """
    if cos_sin_cache.dtype != torch.float32:
        raise ValueError(f"cos_sin_cache.dtype: expected torch.float32, got {cos_sin_cache.dtype}")
    if positions.dtype not in _POSITION_DTYPES:
        positions = positions.to(torch.int64)
    q, k = _heads(query, head_size), _heads(key, head_size)

    fused = fused_set_kv_buffer_arg
    if fused is None:
        _rope(q, k, q, k, cos_sin_cache, positions, not is_neox, bool(enable_pdl), 0, None, None, None, None)
        return
    if fused.k_scale is not None or fused.v_scale is not None:
        raise AssertionError(f"k_scale, v_scale: expected None, got {fused.k_scale}, {fused.v_scale}")
    if fused.cache_loc.dtype != torch.int64:
        raise AssertionError(f"cache_loc.dtype: expected torch.int64, got {fused.cache_loc.dtype}")
    _rope(
        *(q, k, q, k, cos_sin_cache, positions, not is_neox),
        *(default_pdl() if enable_pdl is None else enable_pdl, 0),
        _heads(fused.value, head_size),
        _heads(fused.k_buffer, head_size),
        _heads(fused.v_buffer, head_size),
        fused.cache_loc,
    )


_DTYPES = (torch.float16, torch.bfloat16)
_POSITION_DTYPES = (torch.int64, torch.int32)
_OP = "apply_rope_pos_ids_cos_sin_cache"

_rope = ops.apply_rope_pos_ids_cos_sin_cache.default


def _heads(x: Tensor, head_size: int) -> Tensor:
    """[tokens, heads * head_size] as [tokens, heads, head_size]; a size of -1 would fail on 0 tokens."""
    if x.dim() == 3 and x.size(2) == head_size:
        return x
    return x.view(x.size(0), x.shape[1:].numel() // head_size, head_size)


def _check_heads(name: str, x: Tensor, other_name: str, other: Tensor, dims: tuple[int, ...]) -> None:
    """``x``: 3-D, adjacent elements, dtype and device of ``other``, and its sizes in ``dims``."""
    check_like(_OP, name, x, other_name, other)
    check_dim(_OP, name, x, 3)
    for d in dims:
        check_size(_OP, name, x, d, other.size(d), f"{other_name}.size({d})")
    check_last_stride(_OP, name, x)


def _check_index(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...], q: Tensor) -> None:
    """``x`` holds one integer per token."""
    check_dtype(_OP, name, x, dtypes)
    check_device(_OP, name, x, "q", q)
    check_dim(_OP, name, x, 1)
    check_size(_OP, name, x, 0, q.size(0), "q.size(0)")
    check_last_stride(_OP, name, x)


def _check_cache(cos_sin_cache: Tensor, q: Tensor) -> None:
    check_dtype(_OP, "cos_sin_cache", cos_sin_cache, (torch.float32,))
    check_device(_OP, "cos_sin_cache", cos_sin_cache, "q", q)
    check_dim(_OP, "cos_sin_cache", cos_sin_cache, 2)
    rotary_dim = cos_sin_cache.size(1)
    if rotary_dim % 2 != 0 or rotary_dim > q.size(2):
        expected = f"an even number up to {q.size(2)} (q.size(2))"
        fail(_OP, "cos_sin_cache.size(1)", expected, rotary_dim)
    check_last_stride(_OP, "cos_sin_cache", cos_sin_cache)


@fakes(_OP)
def _rope_fake(
    q: Tensor,
    k: Tensor,
    q_rope: Tensor,
    k_rope: Tensor,
    cos_sin_cache: Tensor,
    pos_ids: Tensor,
    interleave: bool,
    enable_pdl: bool,
    cuda_stream: int,
    v: Tensor | None,
    k_buffer: Tensor | None,
    v_buffer: Tensor | None,
    kv_cache_loc: Tensor | None,
) -> None:
    check_dtype(_OP, "q", q, _DTYPES)
    check_dim(_OP, "q", q, 3)
    check_last_stride(_OP, "q", q)
    _check_heads("k", k, "q", q, (0, 2))
    _check_heads("q_rope", q_rope, "q", q, (0, 1, 2))
    _check_heads("k_rope", k_rope, "k", k, (0, 1, 2))
    _check_cache(cos_sin_cache, q)
    _check_index("pos_ids", pos_ids, (torch.int32, torch.int64), q)

    given = [x is not None for x in (v, k_buffer, v_buffer, kv_cache_loc)]
    if any(given) and not all(given):
        fail(_OP, "v, k_buffer, v_buffer, kv_cache_loc", "all four or none", f"{sum(given)}")
    if v is not None and k_buffer is not None and v_buffer is not None and kv_cache_loc is not None:
        _check_heads("v", v, "k", k, (0, 1, 2))
        _check_heads("k_buffer", k_buffer, "k", k, (1, 2))
        _check_heads("v_buffer", v_buffer, "k", k, (1, 2))
        _check_index("kv_cache_loc", kv_cache_loc, (torch.int64,), q)


@implements(_OP)
def _rope_cpu(
    q: Tensor,
    k: Tensor,
    q_rope: Tensor,
    k_rope: Tensor,
    cos_sin_cache: Tensor,
    pos_ids: Tensor,
    interleave: bool,
    enable_pdl: bool,
    cuda_stream: int,
    v: Tensor | None,
    k_buffer: Tensor | None,
    v_buffer: Tensor | None,
    kv_cache_loc: Tensor | None,
) -> None:
    arguments = (q, k, q_rope, k_rope, cos_sin_cache, pos_ids, interleave, enable_pdl, cuda_stream)
    _rope_fake(*arguments, v, k_buffer, v_buffer, kv_cache_loc)
    cos, sin = cos_sin_cache[pos_ids].unsqueeze(1).chunk(2, -1)  # [tokens, 1, rotary_dim / 2]
    q_rope.copy_(_rotate(q, cos, sin, interleave))
    k_rope.copy_(_rotate(k, cos, sin, interleave))
    if v is not None and k_buffer is not None and v_buffer is not None and kv_cache_loc is not None:
        k_buffer[kv_cache_loc] = k_rope
        v_buffer[kv_cache_loc] = v


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool) -> Tensor:
    """``x`` [tokens, heads, head_size] with its first rotary_dim elements rotated, as a new tensor."""
    rotary_dim = 2 * cos.size(-1)
    head = x[..., :rotary_dim].float()
    if interleave:
        x1, x2 = head[..., 0::2], head[..., 1::2]
        rotated = torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1).flatten(-2)
    else:
        x1, x2 = head.chunk(2, -1)
        rotated = torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)
    return torch.cat((rotated.to(x.dtype), x[..., rotary_dim:]), -1)
