"""The grammar family: which kernel for which shape, what the launch carries, what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ._tensors import Tensor

OPS = ["apply_token_bitmask_inplace_cuda"]
DTYPES = {"bfloat16": ("bf16", 2), "float16": ("f16", 2), "float32": ("f32", 4)}


@given(
    rows=st.integers(1, 500),
    tokens=st.integers(1, 300_000),
    element_size=st.sampled_from([2, 4]),
    aligned=st.booleans(),
)
def test_blocks_are_enough_and_no_more(
    native: Any, rows: int, tokens: int, element_size: int, aligned: bool
) -> None:
    shape, chunks, blocks = native.grammar.choose(rows, tokens, element_size, aligned)
    assert native.grammar.shapes[shape][1] == aligned
    per_block = native.grammar.threads * (16 // element_size if aligned else 1)
    assert chunks * per_block >= tokens > (chunks - 1) * per_block
    assert blocks == rows * chunks


def mask(rows: int = 4, words: int = 32) -> Tensor:
    return Tensor(rows, words, dtype="int32")


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    del native, op
    for dtype in DTYPES:
        for width in (1000, 1001):
            yield [Tensor(4, width, dtype=dtype), mask(), None]


def test_launch(gpu: Any) -> None:
    logits = Tensor(4, 1000, dtype="float32", strides=[1024, 1], address=0x1000)
    indices = Tensor(3, dtype="int64", address=0x2000)
    gpu.torch.call(OPS[0], [logits, Tensor(6, 20, dtype="int32", address=0x3000), indices])
    (launch,) = gpu.driver.launches()
    assert launch["kernel"] == "apply_token_bitmask_f32_vector"
    assert (launch["grid"], launch["block"], launch["is_pdl"]) == ((6, 1, 1), (128, 1, 1), True)
    assert launch["params"] == {
        "logits": 0x1000,
        "bitmask": 0x3000,
        "indices": 0x2000,
        "logits_stride": 1024,
        "bitmask_stride": 20,
        "rows": 4,
        "tokens": 640,
        "chunks": 2,
        "is_index_64": True,
    }


@pytest.mark.parametrize("values", [[Tensor(0, 64), mask(0, 2), None], [Tensor(4, 0), mask(4, 0), None]])
def test_nothing_to_do_needs_no_driver(native: Any, values: list[Any]) -> None:
    native.torch.call(OPS[0], values)


REFUSED = [
    (
        [Tensor(4, 64, dtype="int8"), mask(), None],
        "logits: expected bfloat16 or float16 or float32, got int8",
    ),
    ([Tensor(1, 4, 64), mask(), None], "logits: expected 1-D or 2-D [rows, vocabulary], got 3-D [1, 4, 64]"),
    ([Tensor(4, 64, strides=[128, 2]), mask(), None], "logits.stride(-1): expected 1, got 2"),
    ([Tensor(4, 64), Tensor(4, 2), None], "bitmask: expected int32 (32 tokens a word), got bfloat16"),
    ([Tensor(4, 64), mask(3), None], "bitmask: expected 4 rows (those of logits), got 3"),
    ([Tensor(4, 64), mask(), Tensor(2)], "indices: expected int32 or int64, got bfloat16"),
    ([Tensor(4, 64), mask(), mask()], "indices: expected 1-D [count], got 2-D [4, 32]"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_refused(native: Any, values: list[Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'{OPS[0]}: {message}')}$"):
        native.torch.call(OPS[0], values)
