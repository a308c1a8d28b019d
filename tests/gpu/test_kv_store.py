from __future__ import annotations

import pytest
import sgl_kernel
import torch
from sgl_kernel.kv_store import store_kv_cache

from ._compare import assert_same_bits
from ._tensors import DEVICE, HALVES, name, randn

FP8 = torch.float8_e4m3fn


def slots(tokens: int, count: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randperm(count, device=DEVICE)[:tokens].to(dtype)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.uint8, torch.int64], ids=name)
@pytest.mark.parametrize(("k_width", "v_width"), [(1024, 1024), (512, 64), (7, 16), (1, 33), (128, 0)])
@pytest.mark.parametrize("tokens", [0, 1, pytest.param(17, marks=pytest.mark.sanitizer), 1000])
def test_store(tokens: int, k_width: int, v_width: int, dtype: torch.dtype, index: torch.dtype) -> None:
    count = 2 * tokens + 3
    caches, rows = [], []
    for width in (k_width, v_width):
        caches.append(torch.randint(100, (count, width), device=DEVICE).to(dtype))
        rows.append(torch.randint(100, (tokens, width), device=DEVICE).to(dtype))
    loc = slots(tokens, count, index)
    expected = [cache.index_copy(0, loc.long(), row) for cache, row in zip(caches, rows, strict=True)]
    store_kv_cache(*caches, loc, *rows)
    for cache, reference in zip(caches, expected, strict=True):
        assert torch.equal(cache, reference)


def test_strided_rows_and_slots_outside() -> None:
    qkv = randn(5, 512, dtype=torch.bfloat16)
    k, v = qkv[:, 128:256].view(5, 2, 64), qkv[:, 256:384].view(5, 2, 64)
    pool = torch.zeros(2, 9, 3, 2, 64, dtype=torch.bfloat16, device=DEVICE)
    k_cache, v_cache = pool[0, :, 1], pool[1, :, 2]
    loc = torch.tensor([8, -1, 0, 9, 1 << 40], device=DEVICE)
    expected = pool.clone()
    for token, slot in ((0, 8), (2, 0)):
        expected[0, slot, 1], expected[1, slot, 2] = k[token], v[token]
    sgl_kernel.set_kv_buffer_kernel(k_cache, v_cache, loc, k, v)
    assert_same_bits(pool, expected)


@pytest.mark.parametrize("fallback", [False, True])
def test_public_function(fallback: bool) -> None:
    k, v, loc = randn(9, 4, 32, dtype=torch.float16), randn(9, 4, 32, dtype=torch.float16), slots(9, 20)
    k_cache, v_cache = (torch.zeros(20, 4, 32, dtype=torch.float16, device=DEVICE) for _ in range(2))
    sgl_kernel.set_kv_buffer_kernel(k_cache, v_cache, loc, k, v, fallback)
    assert_same_bits(k_cache[loc], k)
    assert_same_bits(v_cache[loc], v)


@pytest.mark.parametrize("out", [FP8, torch.uint8], ids=name)
@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("width", [8, 128, 1024, 5, 129])
@pytest.mark.parametrize("tokens", [0, pytest.param(3, marks=pytest.mark.sanitizer), 300])
def test_downcast(tokens: int, width: int, dtype: torch.dtype, out: torch.dtype) -> None:
    k, v = randn(tokens, 2, width, dtype=dtype, scale=50), randn(tokens, 2, width, dtype=dtype, scale=1e-2)
    count = 3 * tokens + 7
    caches = torch.zeros(2, count, 2, width, dtype=torch.uint8, device=DEVICE).view(out)
    scales = torch.tensor([0.37], device=DEVICE), torch.tensor([0.011], device=DEVICE)
    loc = slots(tokens, tokens + 1)
    sgl_kernel.downcast_fp8(k, v, caches[0], caches[1], *scales, loc, 3, 2)
    for rows, cache, scale in zip((k, v), caches, scales, strict=True):
        expected = torch.zeros(count, 2, width, dtype=torch.uint8, device=DEVICE)
        expected[loc * 3 + 2] = (rows.float() / scale).clamp(-448, 448).to(FP8).view(torch.uint8)
        assert torch.equal(cache.view(torch.uint8), expected)


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("width", [8, 1])
def test_downcast_of_every_half(width: int, dtype: torch.dtype) -> None:
    """All 65536 values: subnormals, ties, infinities (saturated) and NaN (kept)."""
    x = torch.arange(1 << 16, device=DEVICE).to(torch.int16).view(dtype).view(-1, width)
    out = torch.zeros(2, *x.shape, dtype=torch.uint8, device=DEVICE)
    one, loc = torch.ones(1, device=DEVICE), torch.arange(x.size(0), device=DEVICE)
    sgl_kernel.downcast_fp8(x, x, out[0], out[1], one, one, loc)
    expected = x.float().clamp(-448, 448).to(FP8).view(torch.uint8)
    is_nan = x.isnan()
    assert torch.equal(out[0][~is_nan], expected[~is_nan])
    assert (out[0][is_nan] & 0x7F == 0x7F).all()
    assert torch.equal(out[0], out[1])
