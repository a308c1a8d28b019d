"""The GPTQ family: which kernels for which shape, and that the splits cover K once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ._tensors import Tensor

OPS = ["gptq_gemm", "gptq_shuffle"]
BITS = (2, 3, 4, 8)


def words(*sizes: int) -> Tensor:
    return Tensor(*sizes, dtype="int32")


def gemm(tokens: int, bits: int, is_indexed: bool = False, rows: int = 1024) -> list[Any]:
    return [
        Tensor(tokens, rows, dtype="float16"),
        words(rows * bits // 32, 160),
        words(8, 160 * bits // 32),
        Tensor(8, 160, dtype="float16"),
        words(rows if is_indexed else 0),
        False,
        bits,
    ]


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    """Arguments that lead to each kernel that the op can launch."""
    del native
    for bits in BITS:
        if op == "gptq_shuffle":
            yield [words(96 * bits // 32, 64), words(96), bits]
        else:
            for tokens in (1, 3, 17):
                for is_indexed in (False, True):
                    yield gemm(tokens, bits, is_indexed)


@settings(deadline=None, max_examples=300)
@given(
    tokens=st.integers(1, 9000),
    n=st.integers(1, 60_000),
    k=st.integers(1, 60_000),
    multiprocessors=st.integers(1, 200),
)
def test_the_splits_cover_k(native: Any, tokens: int, n: int, k: int, multiprocessors: int) -> None:
    rows, units_per_split, splits, row_blocks, column_blocks, blocks = native.gptq.choose(
        tokens, n, k, multiprocessors
    )
    units = -(-k // 32)
    assert (splits - 1) * units_per_split < units <= splits * units_per_split
    assert (row_blocks - 1) * rows < tokens <= row_blocks * rows
    assert (column_blocks - 1) * 128 < n <= column_blocks * 128
    assert blocks == row_blocks * column_blocks * splits


def test_one_split_needs_no_second_kernel(gpu: Any) -> None:
    gpu.torch.call("gptq_gemm", gemm(1, 4, rows=32))
    assert [launch["kernel"] for launch in gpu.driver.launches()] == ["gptq_gemm_4_indexed_rows_1"]


def test_several_splits_are_reduced(gpu: Any) -> None:
    gpu.torch.call("gptq_gemm", gemm(17, 4))
    assert [launch["kernel"] for launch in gpu.driver.launches()] == [
        "gptq_gemm_4_grouped_tile",
        "gptq_reduce",
    ]


@pytest.mark.parametrize("op", OPS)
def test_nothing_to_do_needs_no_driver(native: Any, op: str) -> None:
    native.torch.call(op, gemm(0, 4) if op == "gptq_gemm" else [words(8, 32), words(0), 4])
