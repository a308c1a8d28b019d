"""csrc/ops/checks.h: every check passes what it should and says exactly what is wrong with the rest."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ._tensors import Tensor

CPU, CUDA = 0, 1


def refuses(message: str) -> Any:
    return pytest.raises(RuntimeError, match=f"^{re.escape(message)}$")


def test_dim(native: Any) -> None:
    native.runtime.check_dim(Tensor(2, 3), 2, "[tokens, hidden]")
    with refuses("op: x: expected 2-D [tokens, hidden], got 3-D [2, 3, 4]"):
        native.runtime.check_dim(Tensor(2, 3, 4), 2, "[tokens, hidden]")
    with refuses("op: x: expected 1-D [tokens], got 0-D []"):
        native.runtime.check_dim(Tensor(), 1, "[tokens]")


def test_size(native: Any) -> None:
    native.runtime.check_size(Tensor(2, 3), 1, 3, "y.size(0)")
    with refuses("op: x.size(1): expected 4 (y.size(0)), got 3"):
        native.runtime.check_size(Tensor(2, 3), 1, 4, "y.size(0)")
    with refuses(f"op: x.size(0): expected {2**40} (y.size(0)), got {2**41}"):
        native.runtime.check_size(Tensor(2**41), 0, 2**40, "y.size(0)")


def test_dtype(native: Any) -> None:
    native.runtime.check_dtype(Tensor(2, dtype="int64"), "int64", "a row for each token")
    with refuses("op: x: expected int64 (a row for each token), got int32"):
        native.runtime.check_dtype(Tensor(2, dtype="int32"), "int64", "a row for each token")
    with refuses("op: x: expected int64 (a row for each token), got another dtype"):
        native.runtime.check_dtype(Tensor(2, dtype="complex64"), "int64", "a row for each token")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_dtype_among_several(native: Any, dtype: str) -> None:
    native.runtime.check_dtype_in_three(Tensor(2, dtype=dtype))


def test_dtype_not_among_several(native: Any) -> None:
    with refuses("op: x: expected float16 or bfloat16 or int32, got float64"):
        native.runtime.check_dtype_in_three(Tensor(2, dtype="float64"))


def test_device(native: Any) -> None:
    native.runtime.check_device(Tensor(2, device="cuda:1"), CUDA, 1, "device of y")
    native.runtime.check_device(Tensor(2, device="cpu"), CPU, 0, "device of y")
    with refuses("op: x: expected a tensor on cuda:1 (device of y), got one on cuda:0"):
        native.runtime.check_device(Tensor(2), CUDA, 1, "device of y")
    with refuses("op: x: expected a tensor on cuda:0 (device of y), got one on cpu"):
        native.runtime.check_device(Tensor(2, device="cpu"), CUDA, 0, "device of y")
    with refuses("op: x: expected a tensor on cpu (device of y), got one on another device"):
        native.runtime.check_device(Tensor(2, device="meta"), CPU, 0, "device of y")


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(4, 8),
        Tensor(4, 8, strides=[100, 1]),
        Tensor(4, 1, strides=[9, 7]),
        Tensor(4, 0, strides=[9, 7]),
    ],
    ids=repr,
)
def test_last_stride(native: Any, tensor: Tensor) -> None:
    native.runtime.check_last_stride(tensor)


@pytest.mark.parametrize("stride", [0, 2, -1, 2**40])
def test_last_stride_not_one(native: Any, stride: int) -> None:
    with refuses(f"op: x.stride(-1): expected 1, got {stride}"):
        native.runtime.check_last_stride(Tensor(4, 2, strides=[8, stride]))


@pytest.mark.parametrize(
    ("address", "stride", "other", "aligned"),
    [
        (0x1000, 8, 16, True),
        (0x1000, 0, -8, True),
        (0x1002, 8, 16, False),
        (0x1008, 8, 16, False),
        (0x1000, 12, 16, False),
        (0x1000, 16, 1, False),
        (0, 8, 8, True),
        (0x1000, 2**60, 8, True),
    ],
)
def test_alignment(native: Any, address: int, stride: int, other: int, aligned: bool) -> None:
    """16 bytes, elements of 2."""
    assert native.runtime.is_aligned(16, 2, address, stride, other) is aligned


def test_grid(native: Any) -> None:
    assert native.runtime.checked_grid(2**31 - 1) == 2**31 - 1
    with refuses("op: input: expected a size that takes at most 2147483647 blocks, got 2147483648"):
        native.runtime.checked_grid(2**31)
