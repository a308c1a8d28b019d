"""csrc/runtime/tensor.h: handles, sizes and strides, dtypes, new tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ._tensors import DTYPE_CODES, KNOWN_DTYPES, Tensor, contiguous

CPU, CUDA = 0, 1  # sglk::DeviceType


@pytest.mark.parametrize("dtype", KNOWN_DTYPES)
def test_dtypes_both_ways(native: Any, dtype: str) -> None:
    assert native.runtime.dtype_from_torch(DTYPE_CODES[dtype]) == dtype
    assert native.runtime.dtype_to_torch(dtype) == DTYPE_CODES[dtype]


@pytest.mark.parametrize("code", [-(2**31), -1, 8, 9, 27, 63, 64, 10**6, 2**31 - 1])
def test_dtype_codes_that_the_library_does_not_know(native: Any, code: int) -> None:
    assert native.runtime.dtype_from_torch(code) == "another dtype"


def test_a_dtype_that_torch_renumbers_beyond_the_table(fresh: Callable[[], Any]) -> None:
    native = fresh()
    native.torch.set_dtype_code("uint64", 64)
    native.torch.set_dtype_code("uint32", 63)
    assert native.runtime.dtype_from_torch(64) == "another dtype"
    assert native.runtime.dtype_from_torch(63) == "uint32"
    assert native.runtime.dtype_from_torch(DTYPE_CODES["uint32"]) == "another dtype"


def test_no_torch_code_for_another_dtype(native: Any) -> None:
    with pytest.raises(RuntimeError, match=r"^dtype: expected one that this library knows, got another$"):
        native.runtime.dtype_to_torch("complex64")


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(),
        Tensor(0),
        Tensor(3, 0, 2),
        Tensor(2, 3, strides=[0, 0], device="cpu", dtype="int64"),
        Tensor(2**40, 2, strides=[-1, 2**62], device="cuda:63", dtype="complex64", address=0),
        Tensor(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, device="meta"),
    ],
    ids=repr,
)
def test_view(native: Any, tensor: Tensor) -> None:
    assert native.runtime.view(tensor) == tensor.view()


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5) | st.just(2**20), max_size=4)
    | st.lists(st.integers(0, 5), min_size=8, max_size=8),
    dtype=st.sampled_from(KNOWN_DTYPES),
    device=st.sampled_from(["cpu", "cuda:0", "cuda:5"]),
)
def test_empty_is_contiguous(native: Any, sizes: list[int], dtype: str, device: str) -> None:
    kind, _, index = device.partition(":")
    if sizes.count(2**20) > 2 or 4 < len(sizes) < 8:
        return
    view = native.runtime.empty(sizes, dtype, CUDA if kind == "cuda" else CPU, int(index or 0))
    assert view["sizes"] == sizes
    assert view["strides"] == contiguous(sizes)
    assert view["numel"] == math.prod(sizes)
    assert (view["dtype"], view["device"]) == (dtype, device)
    assert native.torch.problems() == []


def test_empty_of_too_many_dimensions(native: Any) -> None:
    with pytest.raises(RuntimeError, match=r"^empty: dim: expected at most 8, got 9$"):
        native.runtime.empty([1] * 9, "float32", CPU, 0)


def test_empty_of_another_dtype(native: Any) -> None:
    with pytest.raises(RuntimeError, match=r"^dtype: expected one that this library knows, got another$"):
        native.runtime.empty([1], "complex64", CPU, 0)


def test_empty_that_torch_refuses(native: Any) -> None:
    native.torch.fail("aoti_torch_empty_strided")
    with pytest.raises(
        RuntimeError, match=r"^torch: aoti_torch_empty_strided: failed; torch printed the reason$"
    ):
        native.runtime.empty([1], "float32", CPU, 0)


def test_moves(native: Any) -> None:
    """A tensor moved from and to, into itself and over another: each handle is released once."""
    assert native.runtime.move_about(Tensor(1), Tensor(2, 2)) == ["[1]", "[2, 2]", "[2, 2]"]


@pytest.mark.parametrize("length", [0, 1, 255, 100_000])
def test_messages_of_any_length(native: Any, length: int) -> None:
    assert native.runtime.format_long(length) == f"<{'x' * length}>"
