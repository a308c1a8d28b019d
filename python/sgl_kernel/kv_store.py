"""Stores of keys and values into the rows of their caches, as they are or as float8_e4m3fn.

Keys and values are [tokens, ...] with contiguous rows and any row stride; their caches are [slots, ...] with
rows of as many elements. ``loc`` is int32 or int64 [tokens]. Rows outside of a cache are skipped; where two
tokens have the same row, either may be found there.
"""

from __future__ import annotations

import math

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
    shape,
)
from sgl_kernel._library import fakes, implements, ops

__all__ = ["downcast_fp8", "store_kv_cache"]


def store_kv_cache(k_cache: Tensor, v_cache: Tensor, loc: Tensor, k: Tensor, v: Tensor) -> None:
    """``k_cache[loc] = k`` and ``v_cache[loc] = v``. The dtypes of a cache and its rows are the same."""
    _store_kv_cache(k_cache, v_cache, loc, k, v)


def downcast_fp8(
    k: Tensor,
    v: Tensor,
    k_out: Tensor,
    v_out: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    loc: Tensor,
    mult: int = 1,
    offset: int = 0,
) -> None:
    """``k_out[loc * mult + offset] = float8_e4m3fn(k / k_scale)``, and the same for the values.

    k, v: float16 or bfloat16. k_out, v_out: float8_e4m3fn, or uint8 of the same bits. Scales: float32, one
    element. Divided in float32 and rounded once; beyond 448 it saturates, NaN stays NaN.
    """
    _downcast_fp8(k, v, k_out, v_out, k_scale, v_scale, loc, mult, offset, 0)


_LOC_DTYPES = (torch.int32, torch.int64)
_INPUT_DTYPES = (torch.bfloat16, torch.float16)
_FP8_DTYPES = (torch.float8_e4m3fn, torch.uint8)

_store_kv_cache = ops.store_kv_cache.default
_downcast_fp8 = ops.downcast_fp8.default


def _check_rows(a: Argument) -> None:
    if a.tensor.dim() < 2:
        fail(a.op, a.name, "[rows, ...]", f"{a.tensor.dim()}-D {shape(a.tensor)}")
    expected = 1
    for d in range(a.tensor.dim() - 1, 0, -1):
        if a.tensor.numel() > 0 and a.tensor.size(d) != 1 and a.tensor.stride(d) != expected:
            fail(a.op, a.name, "contiguous rows", f"{shape(a.tensor)} with other strides")
        expected *= a.tensor.size(d)


def _width(t: Tensor) -> int:
    return math.prod(t.shape[1:])


def _check_cache(a: Argument, rows: Argument) -> None:
    """The cache of ``rows``: as wide, on the same device."""
    _check_rows(a)
    width = _width(rows.tensor)
    if _width(a.tensor) != width:
        fail(a.op, a.name, f"rows of {width} elements (those of {rows.name})", shape(a.tensor))
    check_device(a, rows.tensor.device, "device of the rows")


def _check_loc(a: Argument, k: Tensor) -> None:
    check_dim(a, 1, "[tokens]")
    check_size(a, 0, k.size(0), "k.size(0)")
    check_dtype_in(a, _LOC_DTYPES)
    check_device(a, k.device, "device of k")
    check_last_stride(a)


def _check_store(k_cache: Tensor, v_cache: Tensor, out_loc: Tensor, k: Tensor, v: Tensor) -> None:
    op = "store_kv_cache"
    key, value = Argument(op, "k", k), Argument(op, "v", v)
    caches = Argument(op, "k_cache", k_cache), Argument(op, "v_cache", v_cache)
    _check_rows(key)
    _check_rows(value)
    check_size(value, 0, k.size(0), "k.size(0)")
    check_device(value, k.device, "device of k")
    _check_cache(caches[0], key)
    _check_cache(caches[1], value)
    check_dtype(caches[0], k.dtype, "dtype of k")
    check_dtype(caches[1], v.dtype, "dtype of v")
    _check_loc(Argument(op, "out_loc", out_loc), k)


def _check_downcast(
    k: Tensor, v: Tensor, k_out: Tensor, v_out: Tensor, k_scale: Tensor, v_scale: Tensor, loc: Tensor
) -> None:
    op = "downcast_fp8"
    key, value = Argument(op, "k", k), Argument(op, "v", v)
    outs = Argument(op, "k_out", k_out), Argument(op, "v_out", v_out)
    _check_rows(key)
    _check_rows(value)
    check_dtype_in(key, _INPUT_DTYPES)
    check_dtype(value, k.dtype, "dtype of k")
    check_size(value, 0, k.size(0), "k.size(0)")
    check_device(value, k.device, "device of k")
    _check_cache(outs[0], key)
    _check_cache(outs[1], value)
    check_dtype_in(outs[0], _FP8_DTYPES)
    check_dtype_in(outs[1], _FP8_DTYPES)
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        a = Argument(op, name, scale)
        check_dtype(a, torch.float32, "a scale")
        check_device(a, k.device, "device of k")
        if scale.numel() != 1:
            fail(op, name, "one element", shape(scale))
    _check_loc(Argument(op, "loc", loc), k)


def _store_rows(cache: Tensor, rows: Tensor, values: Tensor) -> None:
    """``cache[rows] = values`` where there is such a row."""
    rows = rows.long()
    is_row = (rows >= 0) & (rows < cache.size(0))
    bits = (
        cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache
    )  # indexing knows no float8
    values = values.view(torch.uint8) if values.dtype == torch.float8_e4m3fn else values
    bits[rows[is_row]] = values.reshape(values.size(0), *cache.shape[1:])[is_row]


def _to_fp8(x: Tensor, scale: Tensor) -> Tensor:
    largest = torch.finfo(torch.float8_e4m3fn).max
    return (x.float() / scale.reshape(())).clamp(-largest, largest).to(torch.float8_e4m3fn)


@fakes("store_kv_cache")
def _store_kv_cache_fake(k_cache: Tensor, v_cache: Tensor, out_loc: Tensor, k: Tensor, v: Tensor) -> None:
    _check_store(k_cache, v_cache, out_loc, k, v)


@implements("store_kv_cache")
def _store_kv_cache_cpu(k_cache: Tensor, v_cache: Tensor, out_loc: Tensor, k: Tensor, v: Tensor) -> None:
    _check_store(k_cache, v_cache, out_loc, k, v)
    _store_rows(k_cache, out_loc, k)
    _store_rows(v_cache, out_loc, v)


@fakes("downcast_fp8")
def _downcast_fp8_fake(
    k: Tensor,
    v: Tensor,
    k_out: Tensor,
    v_out: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    loc: Tensor,
    mult: int,
    offset: int,
    cuda_stream: int,
) -> None:
    _check_downcast(k, v, k_out, v_out, k_scale, v_scale, loc)


@implements("downcast_fp8")
def _downcast_fp8_cpu(
    k: Tensor,
    v: Tensor,
    k_out: Tensor,
    v_out: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    loc: Tensor,
    mult: int,
    offset: int,
    cuda_stream: int,
) -> None:
    _check_downcast(k, v, k_out, v_out, k_scale, v_scale, loc)
    rows = loc.long() * mult + offset
    _store_rows(k_out, rows, _to_fp8(k, k_scale))
    _store_rows(v_out, rows, _to_fp8(v, v_scale))
