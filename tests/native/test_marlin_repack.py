"""The repacking family: which kernel for which packing, and that its blocks cover every tile once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ._tensors import Tensor

OPS = ["awq_marlin_repack", "awq_marlin_moe_repack", "gptq_marlin_repack"]


def words(*sizes: int) -> Tensor:
    return Tensor(*sizes, dtype="int32")


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    """Arguments that lead to each kernel that the op can launch."""
    del native
    for bits in (4, 8):
        if op == "awq_marlin_repack":
            yield [words(32, 64 * bits // 32), 32, 64, bits]
        elif op == "awq_marlin_moe_repack":
            yield [words(3, 32, 64 * bits // 32), words(3, 0), 32, 64, bits]
        else:
            yield [words(bits, 64), words(0), 32, 64, bits]
            yield [words(bits, 64), words(32), 32, 64, bits]


@settings(deadline=None, max_examples=200)
@given(
    source=st.integers(0, 2),
    bits=st.sampled_from([4, 8]),
    tile_rows=st.integers(1, 9),
    column_blocks=st.integers(1, 70),
)
def test_every_tile_is_covered_once(
    native: Any, source: int, bits: int, tile_rows: int, column_blocks: int
) -> None:
    """The index arithmetic of csrc/kernels/marlin_repack.cu."""
    kernel, tiles, chunks, blocks = native.marlin_repack.choose(
        source, bits, 16 * tile_rows, 64 * column_blocks
    )
    assert native.marlin_repack.kernel_name(kernel).endswith(f"_{bits}")
    covered = [0] * (tile_rows * column_blocks)
    for block in range(blocks):
        for warp in range(4):
            first = (block % chunks * 4 + warp) * tiles
            for column in range(first, min(first + tiles, column_blocks)):
                covered[block // chunks * column_blocks + column] += 1
    assert covered == [1] * len(covered)


@pytest.mark.parametrize("op", OPS)
def test_nothing_to_do_needs_no_driver(native: Any, op: str) -> None:
    leading = [2] if op == "awq_marlin_moe_repack" else []
    perm = [] if op == "awq_marlin_repack" else [words(0)]
    columns = 64 if op == "gptq_marlin_repack" else 8
    native.torch.call(op, [words(*leading, 0, columns), *perm, 0, 64, 4])
