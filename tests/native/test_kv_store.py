"""The kv_store family: which kernel for which shape, what the launch carries, what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ._tensors import Tensor

OPS = ["store_kv_cache", "downcast_fp8"]


@given(tokens=st.integers(1, 10_000), units=st.integers(1, 5_000))
def test_lanes_fit_the_row(native: Any, tokens: int, units: int) -> None:
    lanes_log2, blocks = native.kv_store.choose(tokens, units)
    lanes = 1 << lanes_log2
    assert lanes <= native.kv_store.threads
    assert lanes == 1 or lanes // 2 < units
    assert lanes >= units or lanes == native.kv_store.threads
    assert blocks == -(-tokens // (native.kv_store.threads // lanes))


def store(k: Tensor, cache: Tensor, loc: Tensor | None = None) -> list[Any]:
    return [cache, cache, loc or Tensor(k.sizes[0], dtype="int64"), k, k]


def downcast(k: Tensor, out: Tensor) -> list[Any]:
    scale = Tensor(1, dtype="float32")
    return [k, k, out, out, scale, scale, Tensor(k.sizes[0], dtype="int32"), 2, 1, 0]


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    del native
    for width in (128, 127):
        if op == "store_kv_cache":
            yield store(Tensor(5, width), Tensor(9, width))
        else:
            for dtype in ("bfloat16", "float16"):
                yield downcast(Tensor(5, width, dtype=dtype), Tensor(9, width, dtype="float8_e4m3fn"))


def test_a_store_counts_bytes(gpu: Any) -> None:
    k = Tensor(5, 2, 64, strides=[1000, 64, 1], address=0x1000)
    gpu.torch.call("store_kv_cache", store(k, Tensor(9, 128, address=0x100000)))
    (launch,) = gpu.driver.launches()
    params = launch["params"]
    assert launch["kernel"] == "store_kv_cache_vector"
    assert (params["k_stride"], params["k_cache_stride"], params["k_units"]) == (2000, 256, 16)
    assert (params["k_slots"], params["mult"], params["offset"]) == (9, 1, 0)
    assert params["is_loc_64"]


def test_a_downcast_counts_elements(gpu: Any) -> None:
    gpu.torch.call("downcast_fp8", downcast(Tensor(5, 2, 64), Tensor(9, 2, 64, dtype="uint8")))
    (launch,) = gpu.driver.launches()
    params = launch["params"]
    assert launch["kernel"] == "downcast_fp8_bf16_vector"
    assert (params["k_stride"], params["k_cache_stride"], params["k_units"]) == (128, 128, 16)
    assert (params["mult"], params["offset"], params["is_loc_64"]) == (2, 1, False)


def test_nothing_to_do_needs_no_driver(native: Any) -> None:
    native.torch.call("store_kv_cache", store(Tensor(0, 64), Tensor(9, 64)))
    native.torch.call("downcast_fp8", downcast(Tensor(0, 64), Tensor(9, 64, dtype="uint8")))


C, OUT = Tensor(9, 64), Tensor(9, 64, dtype="uint8")
REFUSED: list[tuple[str, list[Any], str]] = [
    ("store_kv_cache", store(Tensor(5), C), "k: expected [rows, ...], got 1-D [5]"),
    (
        "store_kv_cache",
        store(Tensor(5, 64, strides=[128, 2]), C),
        "k: expected contiguous rows, got [5, 64] with other strides",
    ),
    (
        "store_kv_cache",
        store(Tensor(5, 32), C),
        "k_cache: expected rows of 32 elements (those of k), got [9, 64]",
    ),
    (
        "store_kv_cache",
        store(Tensor(5, 64, dtype="float16"), C),
        "k_cache: expected float16 (dtype of k), got bfloat16",
    ),
    (
        "store_kv_cache",
        store(Tensor(5, 64), C, Tensor(4, dtype="int64")),
        "out_loc.size(0): expected 5 (k.size(0)), got 4",
    ),
    ("store_kv_cache", store(Tensor(5, 64), C, Tensor(5)), "out_loc: expected int32 or int64, got bfloat16"),
    (
        "downcast_fp8",
        downcast(Tensor(5, 64, dtype="float32"), OUT),
        "k: expected bfloat16 or float16, got float32",
    ),
    ("downcast_fp8", downcast(Tensor(5, 64), C), "k_out: expected float8_e4m3fn or uint8, got bfloat16"),
]


@pytest.mark.parametrize(("op", "values", "message"), REFUSED, ids=[x[-1] for x in REFUSED])
def test_what_is_refused(native: Any, op: str, values: list[Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'{op}: {message}')}$"):
        native.torch.call(op, values)
