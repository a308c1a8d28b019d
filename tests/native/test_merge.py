"""The merge family: which kernel for which shape, what the launch carries, what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ._tensors import Tensor

OPS = ["merge_state", "merge_state_v2"]
DTYPES = {"bfloat16": ("bf16", 2), "float16": ("f16", 2), "float32": ("f32", 4)}
# Tokens, heads, head_dim that lead to each shape with 132 multiprocessors, whatever the dtype.
GEOMETRIES = {0: (4, 8, 128), 1: (10000, 16, 128), 2: (65536, 16, 128), 3: (4, 8, 127)}


@settings(deadline=None, max_examples=100)
@given(
    rows=st.integers(1, 200),
    dim=st.integers(1, 600),
    element_size=st.sampled_from([2, 4]),
    aligned=st.booleans(),
    multiprocessors=st.sampled_from([1, 132]),
)
def test_every_unit_is_covered_once(
    native: Any, rows: int, dim: int, element_size: int, aligned: bool, multiprocessors: int
) -> None:
    """The index arithmetic of csrc/kernels/merge.cu. A unit is a vector, or an element."""
    assume(not aligned or dim * element_size % 16 == 0)
    shape, threads, lanes_log2, blocks = native.merge.choose(
        rows, dim, element_size, aligned, multiprocessors
    )
    _, is_vector, per_thread = native.merge.shapes[shape]
    assert is_vector == aligned
    assert lanes_log2 <= 5  # a row stays within a warp
    units, lanes = dim * element_size // 16 if aligned else dim, 1 << lanes_log2
    abreast = threads >> lanes_log2
    covered = [bytearray(units) for _ in range(rows)]
    for block in range(blocks):
        for thread in range(threads):
            for r in range(per_thread):
                row = block * abreast * per_thread + (thread >> lanes_log2) + r * abreast
                for unit in range(thread & (lanes - 1), units, lanes):
                    if row < rows:
                        covered[row][unit] += 1
    assert all(row == b"\1" * units for row in covered)


def arguments(tokens: int, heads: int, dim: int, dtype: str = "bfloat16") -> list[Tensor]:
    v, s = Tensor(tokens, heads, dim, dtype=dtype), Tensor(tokens, heads, dtype="float32")
    return [v, s, v, s, v, s]


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    del native, op
    for dtype in DTYPES:
        for geometry in GEOMETRIES.values():
            yield arguments(*geometry, dtype=dtype)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", GEOMETRIES)
def test_launch(gpu: Any, op: str, dtype: str, shape: int) -> None:
    tokens, heads, dim = GEOMETRIES[shape]
    gpu.torch.call(op, arguments(tokens, heads, dim, dtype))
    (launch,) = gpu.driver.launches()
    kind, size = DTYPES[dtype]
    chosen, threads, lanes_log2, blocks = gpu.merge.choose(tokens * heads, dim, size, shape != 3, 132)
    assert chosen == shape
    assert launch["kernel"] == f"{op}_{kind}_{gpu.merge.shapes[shape][0]}"
    assert (launch["grid"], launch["block"], launch["is_pdl"]) == ((blocks, 1, 1), (threads, 1, 1), True)
    params = launch["params"]
    assert (params["rows"], params["lanes_log2"]) == (tokens * heads, lanes_log2)
    assert params["units"] == (dim if shape == 3 else dim * size // 16)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sizes", [(0, 4, 64), (4, 0, 64)])
def test_nothing_to_do_needs_no_driver(native: Any, op: str, sizes: tuple[int, int, int]) -> None:
    native.torch.call(op, arguments(*sizes))


V, S = Tensor(3, 4, 16), Tensor(3, 4, dtype="float32")
REFUSED = [
    (0, Tensor(3, 64), "v_a: expected 3-D [tokens, heads, head_dim], got 2-D [3, 64]"),
    (0, Tensor(3, 4, 16, dtype="float64"), "v_a: expected bfloat16 or float16 or float32, got float64"),
    (
        0,
        Tensor(3, 4, 16, strides=[128, 32, 1]),
        "v_a: expected a contiguous tensor, got [3, 4, 16] with other strides",
    ),
    (1, Tensor(3, 4), "s_a: expected float32 (a log-sum-exp), got bfloat16"),
    (2, Tensor(3, 5, 16), "v_b.size(1): expected 4 (that of v_a), got 5"),
    (3, Tensor(3, dtype="float32"), "s_b: expected 2-D [tokens, heads], got 1-D [3]"),
    (
        4,
        Tensor(3, 4, 16, device="cuda:1"),
        "v_merged: expected a tensor on cuda:0 (device of v_a), got one on cuda:1",
    ),
]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("position", "tensor", "message"), REFUSED, ids=[x[-1] for x in REFUSED])
def test_what_is_refused(native: Any, op: str, position: int, tensor: Tensor, message: str) -> None:
    values = [V, S, V, S, V, S]
    values[position] = tensor
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'{op}: {message}')}$"):
        native.torch.call(op, values)
