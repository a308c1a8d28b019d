from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sgl_kernel
import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16)
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(values: Tensor) -> Tensor:
    words = [
        [sum(row[w + o] << (4 * t) for t, o in enumerate(ORDER)) for w in range(0, len(row), 8)]
        for row in values.tolist()
    ]
    return torch.tensor(words, dtype=torch.int64).reshape(len(values), -1).to(torch.uint32).view(torch.int32)


def make(rows: int, columns: int, groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, scales, zeros."""
    scales = (torch.rand(groups, columns) + 0.1).to(dtype)
    return torch.randint(16, (rows, columns)), scales, torch.randint(16, (groups, columns))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "groups"), [(1, 8, 1), (3, 24, 1), (64, 64, 2), (256, 104, 2), (96, 136, 8)]
)
def test_dequantize(rows: int, columns: int, groups: int, dtype: torch.dtype) -> None:
    q, scales, zeros = make(rows, columns, groups, dtype)
    out = sgl_kernel.awq_dequantize(pack(q), scales, pack(zeros))
    group = torch.arange(rows) // (rows // groups)
    expected = ((q - zeros[group]).double() * scales.double()[group]).to(dtype)
    assert (out.shape, out.dtype) == ((rows, columns), dtype)
    assert torch.equal(out, expected)


def arguments() -> dict[str, Tensor]:
    q, scales, zeros = make(32, 64, 2, torch.float16)
    return {"qweight": pack(q), "scales": scales, "qzeros": pack(zeros)}


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.sgl_kernel.awq_dequantize.default, tuple(arguments().values()))


@pytest.mark.parametrize(("rows", "words", "groups"), [(0, 4, 0), (0, 4, 1), (8, 0, 2)])
def test_empty(rows: int, words: int, groups: int) -> None:
    packed = [torch.zeros(n, words, dtype=torch.int32) for n in (rows, groups)]
    out = sgl_kernel.awq_dequantize(packed[0], torch.zeros(groups, words * 8).half(), packed[1])
    assert out.shape == (rows, words * 8)


def test_one_graph(compile_whole: Callable[..., Any]) -> None:
    tensors = tuple(arguments().values())
    compiled = compile_whole(lambda *x: sgl_kernel.awq_dequantize(*x) * 2)
    assert torch.equal(compiled(*tensors), sgl_kernel.awq_dequantize(*tensors) * 2)


def words(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


BAD: dict[str, tuple[str, Tensor, str]] = {
    "weight dim": ("qweight", words(32), "qweight: expected 2-D [in, out / 8], got 1-D [32]"),
    "weight dtype": (
        "qweight",
        words(32, 8).long(),
        "qweight: expected int32 (packed weights), got int64",
    ),
    "weight strides": (
        "qweight",
        words(8, 32).t(),
        "qweight: expected a contiguous tensor, got stride 32 of dimension 1",
    ),
    "scales dim": ("scales", torch.zeros(64).half(), "scales: expected 2-D [groups, out], got 1-D [64]"),
    "scales columns": (
        "scales",
        torch.zeros(2, 32).half(),
        "scales.size(1): expected 64 (8 * qweight.size(1)), got 32",
    ),
    "scales dtype": (
        "scales",
        torch.zeros(2, 64),
        "scales: expected float16 or bfloat16, got float32",
    ),
    "scales device": (
        "scales",
        torch.zeros(2, 64, device="meta").half(),
        "scales: expected a tensor on cpu (device of qweight), got one on meta",
    ),
    "scales strides": (
        "scales",
        torch.zeros(64, 2).half().t(),
        "scales: expected a contiguous tensor, got stride 2 of dimension 1",
    ),
    "groups": (
        "scales",
        torch.zeros(3, 64).half(),
        "scales.size(0): expected a divisor of 32 (qweight.size(0)), got 3",
    ),
    "no group": (
        "scales",
        torch.zeros(0, 64).half(),
        "scales.size(0): expected a divisor of 32 (qweight.size(0)), got 0",
    ),
    "zeros dim": ("qzeros", words(8), "qzeros: expected 2-D [groups, out / 8], got 1-D [8]"),
    "zeros groups": ("qzeros", words(1, 8), "qzeros.size(0): expected 2 (scales.size(0)), got 1"),
    "zeros columns": ("qzeros", words(2, 4), "qzeros.size(1): expected 8 (qweight.size(1)), got 4"),
    "zeros dtype": (
        "qzeros",
        words(2, 8).short(),
        "qzeros: expected int32 (packed zero points), got int16",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    name, tensor, message = BAD[case]
    with pytest.raises(RuntimeError) as failure:
        sgl_kernel.awq_dequantize(**{**arguments(), name: tensor})
    assert str(failure.value) == f"awq_dequantize: {message}"
