"""Rotary position embedding of queries and keys, in place, and optionally the store of keys and values.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021. Pair i of the first
``rotary_dim`` elements of a head turns by the angle of its position and frequency i:
``o1 = x1 * cos - x2 * sin``, ``o2 = x2 * cos + x1 * sin``, in float32, rounded once. A position outside the
table gives NaN; a token whose slot is outside the cache, as the -1 of padding tokens, is not stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_kernel._checks import (
    Argument,
    check_device,
    check_dim,
    check_dtype,
    check_dtype_in,
    check_last_stride,
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
    enable_pdl: a launch hint; None: where the GPU has it.

    Raises ValueError if cos_sin_cache is not float32, AssertionError if a scale is given or cache_loc is not
    int64, RuntimeError for the rest.
    """
    if cos_sin_cache.dtype != torch.float32:
        raise ValueError(f"cos_sin_cache.dtype: expected torch.float32, got {cos_sin_cache.dtype}")
    if positions.dtype not in _POSITION_DTYPES:
        positions = positions.to(torch.int64)
    q, k = _heads(query, head_size), _heads(key, head_size)

    store: tuple[Tensor | None, ...] = (None, None, None, None)
    fused = fused_set_kv_buffer_arg
    if fused is not None:
        if fused.k_scale is not None or fused.v_scale is not None:
            raise AssertionError(f"k_scale, v_scale: expected None, got {fused.k_scale}, {fused.v_scale}")
        if fused.cache_loc.dtype != torch.int64:
            raise AssertionError(f"cache_loc.dtype: expected torch.int64, got {fused.cache_loc.dtype}")
        k_buffer, v_buffer = _heads(fused.k_buffer, head_size), _heads(fused.v_buffer, head_size)
        store = (_heads(fused.value, head_size), k_buffer, v_buffer, fused.cache_loc)
    pdl = default_pdl() if enable_pdl is None else enable_pdl
    _rope(q, k, q, k, cos_sin_cache, positions, not is_neox, pdl, 0, *store)


_DTYPES = (torch.float16, torch.bfloat16)
_POSITION_DTYPES = (torch.int64, torch.int32)
_MAX_ROTARY_DIM = 1024  # of the CUDA kernel: kMaxRotaryDim in csrc/ops/heuristics/rope.h
_OP = "apply_rope_pos_ids_cos_sin_cache"

_rope = ops.apply_rope_pos_ids_cos_sin_cache.default


def _heads(x: Tensor, head_size: int) -> Tensor:
    """[tokens, heads * head_size] as [tokens, heads, head_size]; a size of -1 would fail on 0 tokens."""
    shape = x.shape
    if len(shape) == 3 and shape[2] == head_size:
        return x
    width = shape[1] if len(shape) == 2 else shape[1:].numel()
    return x.view(shape[0], width // head_size, head_size)


def _check_heads(name: str, x: Tensor, like: Tensor, reason: str, has_tokens: bool = True) -> None:
    """``x`` is [rows, heads, head_size] as ``like``; rows are tokens, or slots of a cache (any number)."""
    a = Argument(_OP, name, x)
    check_dim(a, 3, "[tokens, heads, head_size]")
    for d in range(0 if has_tokens else 1, 3):
        check_size(a, d, like.size(d), reason)
    check_dtype(a, like.dtype, reason)
    check_device(a, like.device, reason)
    check_last_stride(a)


def _check_table(cos_sin_cache: Tensor, q: Tensor) -> None:
    a = Argument(_OP, "cos_sin_cache", cos_sin_cache)
    check_dim(a, 2, "[max_position, rotary_dim]")
    check_dtype(a, torch.float32, "cosines and sines")
    check_device(a, q.device, "device of q")
    check_last_stride(a)
    rows, rotary_dim = cos_sin_cache.shape
    if rotary_dim < 2 or rotary_dim % 2 != 0 or rotary_dim > min(q.size(2), _MAX_ROTARY_DIM):
        expected = f"an even rotary_dim of 2 to head_size ({q.size(2)}), at most {_MAX_ROTARY_DIM}"
        fail(_OP, "cos_sin_cache.size(1)", expected, rotary_dim)
    if rows > 1 and cos_sin_cache.stride(0) != rotary_dim:
        fail(_OP, "cos_sin_cache.stride(0)", f"{rotary_dim} (contiguous)", cos_sin_cache.stride(0))


def _check_store(
    k: Tensor,
    v: Tensor | None,
    k_buffer: Tensor | None,
    v_buffer: Tensor | None,
    kv_cache_loc: Tensor | None,
) -> None:
    if v is None or k_buffer is None or v_buffer is None or kv_cache_loc is None:
        given = sum(x is not None for x in (v, k_buffer, v_buffer, kv_cache_loc))
        if given > 0:
            fail(_OP, "v, k_buffer, v_buffer, kv_cache_loc", "all four or none", f"{given} of them")
        return
    _check_heads("v", v, k, "k's")
    _check_heads("k_buffer", k_buffer, k, "k's", has_tokens=False)
    _check_heads("v_buffer", v_buffer, k, "k's", has_tokens=False)
    check_size(Argument(_OP, "v_buffer", v_buffer), 0, k_buffer.size(0), "k_buffer.size(0)")
    a = Argument(_OP, "kv_cache_loc", kv_cache_loc)
    check_dim(a, 1, "[tokens]")
    check_size(a, 0, k.size(0), "k.size(0)")
    check_dtype(a, torch.int64, "a row of the buffers for each token")
    check_device(a, k.device, "device of q")
    check_last_stride(a)


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
    a = Argument(_OP, "q", q)
    check_dim(a, 3, "[tokens, heads, head_size]")
    check_dtype_in(a, _DTYPES)
    check_last_stride(a)
    a = Argument(_OP, "k", k)
    check_dim(a, 3, "[tokens, heads, head_size]")
    check_size(a, 0, q.size(0), "q.size(0)")
    check_size(a, 2, q.size(2), "q.size(2)")
    check_dtype(a, q.dtype, "dtype of q")
    check_device(a, q.device, "device of q")
    check_last_stride(a)
    _check_heads("q_rope", q_rope, q, "q's")
    _check_heads("k_rope", k_rope, k, "k's")
    _check_table(cos_sin_cache, q)
    a = Argument(_OP, "pos_ids", pos_ids)
    check_dim(a, 1, "[tokens]")
    check_size(a, 0, q.size(0), "q.size(0)")
    check_dtype_in(a, (torch.int32, torch.int64))
    check_device(a, q.device, "device of q")
    check_last_stride(a)
    _check_store(k, v, k_buffer, v_buffer, kv_cache_loc)


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
    is_known = (pos_ids >= 0) & (pos_ids < cos_sin_cache.size(0))
    table = torch.full((q.size(0), cos_sin_cache.size(1)), torch.nan)
    table[is_known] = cos_sin_cache[pos_ids[is_known]]
    cos, sin = table.unsqueeze(1).chunk(2, -1)  # [tokens, 1, rotary_dim / 2]
    q_rope.copy_(_rotate(q, cos, sin, interleave))
    k_rope.copy_(_rotate(k, cos, sin, interleave))
    if v is not None and k_buffer is not None and v_buffer is not None and kv_cache_loc is not None:
        is_stored = (kv_cache_loc >= 0) & (kv_cache_loc < k_buffer.size(0))
        k_buffer[kv_cache_loc[is_stored]] = k_rope[is_stored]
        v_buffer[kv_cache_loc[is_stored]] = v[is_stored]


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
