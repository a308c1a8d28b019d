from __future__ import annotations

import pytest
import sgl_kernel
import torch
from sgl_kernel.kv_store import store_kv_cache
from torch import Tensor

FP8 = torch.float8_e4m3fn


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.uint8, FP8])
def test_store(dtype: torch.dtype, index: torch.dtype) -> None:
    k = torch.randn(4, 3 * 16).to(dtype).view(4, 3, 16)
    v = torch.randn(4, 40).to(dtype)[:, :20]
    k_cache, v_cache = torch.zeros(7, 3, 16).to(dtype), torch.zeros(7, 20).to(dtype)
    store_kv_cache(k_cache, v_cache, torch.tensor([6, 0, -1, 7], dtype=index), k, v)
    for cache, rows in ((k_cache, k), (v_cache, v)):
        expected = torch.zeros(7, *rows.shape[1:])
        expected[6], expected[0] = rows[0].float(), rows[1].float()
        assert torch.equal(cache.float(), expected)


@pytest.mark.parametrize("fallback", [False, True])
def test_public_function_falls_back_to_indexing(fallback: bool) -> None:
    k, v = torch.randn(2, 8), torch.randn(2, 8)
    k_cache, v_cache = torch.zeros(4, 8), torch.zeros(4, 16)[:, ::2]  # refused by the operator
    loc = torch.tensor([3, 1])
    sgl_kernel.set_kv_buffer_kernel(k_cache, v_cache, loc, k, v, fallback)
    assert torch.equal(k_cache[loc], k)
    assert torch.equal(v_cache[loc], v)


@pytest.mark.parametrize("out", [FP8, torch.uint8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_downcast(dtype: torch.dtype, out: torch.dtype) -> None:
    k, v = (torch.randn(3, 2, 16) * 100).to(dtype), torch.randn(3, 2, 16).to(dtype)
    k[0, 0, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1000.0])
    caches = torch.zeros(2, 9, 2, 16, dtype=torch.uint8).view(out)
    scales = torch.tensor([0.5]), torch.tensor(2.0)
    sgl_kernel.downcast_fp8(k, v, caches[0], caches[1], *scales, torch.tensor([3, 0, 4]), 2, 1)
    for rows, cache, scale in zip((k, v), caches, scales, strict=True):
        values = cache.view(FP8).float()
        expected = (rows.float() / scale).clamp(-448, 448).to(FP8).float()
        torch.testing.assert_close(values[[7, 1]], expected[[0, 1]], rtol=0, atol=0, equal_nan=True)
        assert (values[[0, 2, 3, 4, 5, 6, 8]] == 0).all()  # token 2 has no row: 9 is outside


def test_opcheck() -> None:
    k, loc = torch.randn(2, 3, 8).half(), torch.tensor([1, 3])
    store = torch.ops.sgl_kernel.store_kv_cache.default
    torch.library.opcheck(
        store, (torch.zeros(4, 3, 8).half(), torch.zeros(4, 24).half(), loc, k, k.view(2, 24))
    )
    caches = torch.zeros(4, 3, 8, dtype=torch.uint8), torch.zeros(4, 3, 8, dtype=torch.uint8)
    downcast = torch.ops.sgl_kernel.downcast_fp8.default
    torch.library.opcheck(downcast, (k, k, *caches, torch.ones(1), torch.ones(1), loc, 1, 0, 0))


X, C, LOC = torch.zeros(2, 8).half(), torch.zeros(4, 8).half(), torch.zeros(2, dtype=torch.int64)
STORE = {"k_cache": C, "v_cache": C, "out_loc": LOC, "k": X, "v": X}
BAD_STORE = [
    ({"k": X[0]}, "k: expected [rows, ...], got 1-D [8]"),
    ({"k": torch.zeros(2, 16).half()[:, ::2]}, "k: expected contiguous rows, got [2, 8] with other strides"),
    ({"v": X[:1]}, "v.size(0): expected 2 (k.size(0)), got 1"),
    ({"k_cache": C[:, :4]}, "k_cache: expected rows of 8 elements (those of k), got [4, 4]"),
    ({"v_cache": C.float()}, "v_cache: expected float16 (dtype of v), got float32"),
    ({"out_loc": LOC[:1]}, "out_loc.size(0): expected 2 (k.size(0)), got 1"),
    ({"out_loc": LOC.short()}, "out_loc: expected int32 or int64, got int16"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_STORE, ids=[message for _, message in BAD_STORE])
def test_bad_store(changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.ops.sgl_kernel.store_kv_cache(*(STORE | changed).values())
    assert str(failure.value) == f"store_kv_cache: {message}"


OUT = torch.zeros(4, 8, dtype=torch.uint8)
ONE = torch.ones(1)
DOWNCAST = {"k": X, "v": X, "k_out": OUT, "v_out": OUT, "k_scale": ONE, "v_scale": ONE, "loc": LOC}
BAD_DOWNCAST = [
    ({"k": X.float()}, "k: expected bfloat16 or float16, got float32"),
    ({"v": X.bfloat16()}, "v: expected float16 (dtype of k), got bfloat16"),
    ({"k_out": C}, "k_out: expected float8_e4m3fn or uint8, got float16"),
    ({"v_scale": torch.ones(2)}, "v_scale: expected one element, got [2]"),
    ({"k_scale": ONE.double()}, "k_scale: expected float32 (a scale), got float64"),
    ({"loc": LOC[:1]}, "loc.size(0): expected 2 (k.size(0)), got 1"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_DOWNCAST, ids=[message for _, message in BAD_DOWNCAST])
def test_bad_downcast(changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.ops.sgl_kernel.downcast_fp8(*(DOWNCAST | changed).values(), 1, 0, 0)
    assert str(failure.value) == f"downcast_fp8: {message}"
