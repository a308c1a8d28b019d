"""The AWQ family: which kernel for which shape, and that its blocks cover every word once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ._tensors import Tensor

OPS = ["awq_dequantize"]
SHAPES = {  # name: rows, words, groups
    "rows_4": (64, 16, 1),
    "rows_8": (20480, 128, 160),
    "rows_8_streaming": (40960, 128, 320),
    "any": (7, 16, 1),
}


def call(rows: int, words: int, groups: int, dtype: str = "float16") -> list[Any]:
    return [
        Tensor(rows, words, dtype="int32"),
        Tensor(groups, 8 * words, dtype=dtype),
        Tensor(groups, words, dtype="int32"),
    ]


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    """Arguments that lead to each kernel that the op can launch."""
    del native, op
    for dtype in ("float16", "bfloat16"):
        for shape in SHAPES.values():
            yield call(*shape, dtype=dtype)


def test_every_shape_is_chosen(native: Any) -> None:
    for name, (rows, words, groups) in SHAPES.items():
        assert native.awq.choose(rows, words, rows // groups, True, 132)[0] == name
        assert native.awq.choose(rows, words, rows // groups, False, 132)[0] == "any"


@settings(deadline=None, max_examples=300)
@given(
    group_size=st.integers(1, 300),
    groups=st.integers(1, 40),
    words=st.integers(1, 2000),
    aligned=st.booleans(),
    multiprocessors=st.integers(1, 200),
)
def test_a_thread_stays_within_a_group(
    native: Any, group_size: int, groups: int, words: int, aligned: bool, multiprocessors: int
) -> None:
    rows = group_size * groups
    _, per_thread, chunks, blocks = native.awq.choose(rows, words, group_size, aligned, multiprocessors)
    assert group_size % per_thread == 0
    assert (chunks - 1) * 128 < words <= chunks * 128
    assert blocks * per_thread == chunks * rows


def test_nothing_to_do_needs_no_driver(native: Any) -> None:
    native.torch.call("awq_dequantize", call(0, 16, 1))
    native.torch.call("awq_dequantize", call(16, 0, 1))
