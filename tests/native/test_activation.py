"""The activation family: which kernel for which shape, what the launch carries, what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ._tensors import INT_MAX, NEAR_POWERS_OF_TWO, Tensor

OPS = ["silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"]
DTYPES = {"bfloat16": ("bf16", 2), "float16": ("f16", 2), "float32": ("f32", 4)}
ROWS = st.integers(0, 600) | st.integers(0, INT_MAX)
WIDTH = (
    st.integers(1, 200_000)
    | st.integers(1, 25_000).map(lambda n: n * 8)
    | st.sampled_from(NEAR_POWERS_OF_TWO)
    | st.sampled_from([8 * n for n in NEAR_POWERS_OF_TWO])
    | st.just(INT_MAX // 2)
)
MULTIPROCESSORS = st.integers(1, 200)


@settings(deadline=None, max_examples=500)
@given(
    rows=ROWS,
    width=WIDTH,
    element_size=st.sampled_from([2, 4]),
    aligned=st.booleans(),
    multiprocessors=MULTIPROCESSORS,
)
def test_the_choice_is_enough_and_no_more(
    native: Any,
    entry_points: Any,
    rows: int,
    width: int,
    element_size: int,
    aligned: bool,
    multiprocessors: int,
) -> None:
    assume(not aligned or width * element_size % 16 == 0)
    index, threads, lanes_log2, chunks, blocks = native.activation.choose(
        rows, width, element_size, aligned, multiprocessors
    )
    name, is_vector, per_thread = native.activation.shapes[index]
    assert is_vector == aligned
    assert threads % 32 == 0
    assert 32 <= threads <= entry_points["activation"][f"silu_and_mul_bf16_{name}"].max_threads
    lanes = 2**lanes_log2
    assert threads % lanes == 0
    units = width * element_size // 16 if aligned else width
    assert chunks * lanes * per_thread >= units > (chunks - 1) * lanes * per_thread
    assert chunks == 1 or lanes == threads  # rows are cut only when a block is not enough
    assert lanes == 1 or lanes // 2 * per_thread < units  # half the lanes would be too few
    assert blocks == chunks * -(-rows // (threads // lanes))
    assert chunks <= INT_MAX
    assert native.torch.problems() == []


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 1500) | st.integers(1, 600).map(lambda n: n * 8),
    element_size=st.sampled_from([2, 4]),
    aligned=st.booleans(),
    multiprocessors=st.sampled_from([1, 132]),
)
def test_every_element_is_covered_once(
    native: Any, rows: int, width: int, element_size: int, aligned: bool, multiprocessors: int
) -> None:
    """The index arithmetic of csrc/kernels/activation.cu. A unit is a vector, or an element."""
    assume(not aligned or width * element_size % 16 == 0)
    index, threads, lanes_log2, chunks, blocks = native.activation.choose(
        rows, width, element_size, aligned, multiprocessors
    )
    per_thread = native.activation.shapes[index][2]
    lanes = 1 << lanes_log2
    units = width * element_size // 16 if aligned else width
    covered = [bytearray(units) for _ in range(rows)]
    for block in range(blocks):
        for thread in range(threads):
            row = block // chunks * (threads >> lanes_log2) + (thread >> lanes_log2)
            first = block % chunks * lanes * per_thread + (thread & (lanes - 1))
            for unit in range(first, first + per_thread * lanes, lanes):
                if row < rows and unit < units:
                    covered[row][unit] += 1
    assert all(row == b"\1" * units for row in covered)


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    """Arguments that lead to each kernel that the op can launch."""
    del op  # all take the same
    for dtype in DTYPES:
        for rows, width, aligned in one_of_each_shape(native).values():
            x = Tensor(rows, 2 * width, dtype=dtype, address=0x8000 if aligned else 0x8004)
            yield [Tensor(rows, width, dtype=dtype), x]


def one_of_each_shape(native: Any) -> dict[int, tuple[int, int, bool]]:
    """Shape → (rows, width, aligned) that leads to it with 132 multiprocessors, whatever the dtype."""
    found: dict[int, tuple[int, int, bool]] = {}
    for rows, width in ((1, 64), (300, 4096), (1_000_000, 8192)):
        for aligned in (True, False):
            shapes = {native.activation.choose(rows, width, size, aligned, 132)[0] for size in (2, 4)}
            if len(shapes) == 1:
                found.setdefault(shapes.pop(), (rows, width, aligned))
    return found


def test_every_shape_is_chosen_for_something(native: Any) -> None:
    assert sorted(one_of_each_shape(native)) == list(range(len(native.activation.shapes)))


REFUSED = [
    (Tensor(), Tensor(), "input: expected [..., 2 * width], got 0-D"),
    (
        Tensor(4, 8, dtype="int32"),
        Tensor(4, 16, dtype="int32"),
        "input: expected bfloat16 or float16 or float32, got int32",
    ),
    (Tensor(4, 8), Tensor(4, 17), "input.size(-1): expected an even number, got 17"),
    (Tensor(4, 8), Tensor(4, 16, strides=[32, 2]), "input.stride(-1): expected 1, got 2"),
    (Tensor(2, 2, 8), Tensor(4, 16), "out: expected 2-D (input.dim()), got 3-D [2, 2, 8]"),
    (Tensor(5, 8), Tensor(4, 16), "out.size(0): expected 4 (input's), got 5"),
    (Tensor(4, 3, 8), Tensor(4, 2, 16), "out.size(1): expected 2 (input's), got 3"),
    (Tensor(4, 16), Tensor(4, 16), "out.size(1): expected 8 (half of input.size(-1)), got 16"),
    (Tensor(4, 8, dtype="float16"), Tensor(4, 16), "out: expected bfloat16 (dtype of input), got float16"),
    (
        Tensor(4, 8, device="cuda:1"),
        Tensor(4, 16),
        "out: expected a tensor on cuda:0 (device of input), got one on cuda:1",
    ),
    (Tensor(4, 8, strides=[16, 2]), Tensor(4, 16), "out.stride(-1): expected 1, got 2"),
    (
        Tensor(2, 3, 8),
        Tensor(2, 3, 16, strides=[100, 16, 1]),
        "input: expected leading dimensions that flatten into rows, got [2, 3, 16]",
    ),
    (
        Tensor(2, 3, 8, strides=[8, 16, 1]),
        Tensor(2, 3, 16),
        "out: expected leading dimensions that flatten into rows, got [2, 3, 8]",
    ),
    (Tensor(1, 2**30), Tensor(1, 2**31), "input.size(-1): expected less than 2147483648, got 2147483648"),
]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("out", "x", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_is_refused(native: Any, op: str, out: Tensor, x: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'{op}: {message}')}$"):
        native.torch.call(op, [out, x])


def test_a_grid_too_large(gpu: Any) -> None:
    rows = 2**34  # of one vector, 8 to a warp's worth of lanes
    blocks = gpu.activation.choose(rows, 8192, 2, True, 132)[4]
    with pytest.raises(
        RuntimeError,
        match=f"^silu_and_mul: input: expected a size that takes at most 2147483647 blocks, got {blocks}$",
    ):
        gpu.torch.call("silu_and_mul", [Tensor(rows, 8192), Tensor(rows, 16384)])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sizes", [(0,), (0, 16), (4, 0), (2, 0, 16)])
def test_nothing_to_do_needs_no_driver(native: Any, op: str, sizes: tuple[int, ...]) -> None:
    native.torch.call(op, [Tensor(*sizes[:-1], sizes[-1] // 2), Tensor(*sizes)])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_shape_is_launched(gpu: Any, op: str, dtype: str) -> None:
    kind, element_size = DTYPES[dtype]
    for shape, (rows, width, aligned) in one_of_each_shape(gpu).items():
        out = Tensor(rows, width, dtype=dtype, address=0x1000)
        x = Tensor(rows, 2 * width, dtype=dtype, address=0x8000 + (0 if aligned else element_size))
        gpu.torch.call(op, [out, x])
        (launch,) = gpu.driver.launches()
        _, threads, lanes_log2, chunks, blocks = gpu.activation.choose(
            rows, width, element_size, aligned, 132
        )
        assert launch["kernel"] == f"{op}_{kind}_{gpu.activation.shapes[shape][0]}"
        assert (launch["grid"], launch["block"]) == ((blocks, 1, 1), (threads, 1, 1))
        assert (launch["shared_bytes"], launch["cluster"], launch["is_pdl"]) == (0, (1, 1, 1), True)
        assert launch["params"] == {
            "output": 0x1000,
            "input": x.address,
            "output_stride": width,
            "input_stride": 2 * width,
            "rows": rows,
            "width": width,
            "lanes_log2": lanes_log2,
            "chunks": chunks,
        }


@pytest.mark.parametrize(
    ("out", "x", "strides"),
    [
        (Tensor(64), Tensor(128), (64, 128)),
        (Tensor(6, 64, strides=[72, 1]), Tensor(6, 128, strides=[2**40, 1]), (72, 2**40)),
        (Tensor(2, 3, 64), Tensor(2, 3, 128, strides=[600, 200, 1]), (64, 200)),
        (Tensor(2, 1, 3, 64), Tensor(2, 1, 3, 128, strides=[384, 7, 128, 1]), (64, 128)),
        (Tensor(1, 64, strides=[5, 1]), Tensor(1, 128, strides=[3, 1]), (64, 128)),
        (Tensor(3, 1, 64, strides=[80, 5, 1]), Tensor(3, 1, 128, strides=[160, 0, 1]), (80, 160)),
    ],
    ids=str,
)
def test_leading_dimensions_become_rows(gpu: Any, out: Tensor, x: Tensor, strides: tuple[int, int]) -> None:
    gpu.torch.call("silu_and_mul", [out, x])
    (launch,) = gpu.driver.launches()
    params = launch["params"]
    assert (params["output_stride"], params["input_stride"]) == strides
    assert (params["rows"], params["width"]) == (len_of_rows(out), 64)
    assert "_vector_" in launch["kernel"]


def len_of_rows(tensor: Tensor) -> int:
    rows = 1
    for size in tensor.sizes[:-1]:
        rows *= size
    return rows


@pytest.mark.parametrize(
    ("out", "x"),
    [
        (Tensor(4, 64, address=0x1008), Tensor(4, 128)),
        (Tensor(4, 64), Tensor(4, 128, address=0x1008)),
        (Tensor(4, 64, strides=[68, 1]), Tensor(4, 128)),
        (Tensor(4, 64), Tensor(4, 128, strides=[132, 1])),
        # All rows are aligned, but the second half of one begins off a vector.
        (Tensor(4, 60, strides=[64, 1]), Tensor(4, 120, strides=[128, 1])),
    ],
    ids=str,
)
def test_unaligned_rows_go_element_by_element(gpu: Any, out: Tensor, x: Tensor) -> None:
    gpu.torch.call("silu_and_mul", [out, x])
    (launch,) = gpu.driver.launches()
    assert "_element_" in launch["kernel"]
