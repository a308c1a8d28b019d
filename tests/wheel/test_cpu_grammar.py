from __future__ import annotations

import pytest
import sgl_kernel
import torch
from torch import Tensor

OP = "apply_token_bitmask_inplace_cuda"
apply = sgl_kernel.grammar.apply_token_bitmask_inplace_cuda
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def words(allowed: Tensor) -> Tensor:
    """[rows, 32 * words] of bool as int32 [rows, words]."""
    bits = allowed.view(allowed.size(0), allowed.size(1) // 32, 32).long() << torch.arange(32)
    return bits.sum(-1).to(torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (3, 100), (4, 128), (2, 1000), (0, 64), (3, 0)])
def test_all_rows(rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    logits = torch.randn(rows, vocabulary).to(dtype)
    allowed = torch.rand(rows, -(-vocabulary // 32) * 32) < 0.5
    expected = logits.masked_fill(~allowed[:, :vocabulary], -torch.inf)
    apply(logits, words(allowed))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("as_list", [True, False])
def test_some_rows(as_list: bool) -> None:
    buffer = torch.randn(5, 80)
    logits, before = buffer[:, :70], buffer.clone()
    allowed = torch.rand(5, 64) < 0.5
    indices = [4, 1, 1, -1, 5]
    apply(logits, words(allowed), indices if as_list else torch.tensor(indices))
    expected = before.clone()
    for row in (1, 4):
        expected[row, :64] = before[row, :64].masked_fill(~allowed[row], -torch.inf)
    assert torch.equal(buffer, expected)


def test_one_row_and_all_words() -> None:
    logits = torch.zeros(64)
    apply(logits, torch.tensor([-1, 1], dtype=torch.int32))
    assert logits.isinf().nonzero().flatten().tolist() == list(range(33, 64))


def test_opcheck() -> None:
    op = torch.ops.sgl_kernel.apply_token_bitmask_inplace_cuda.default
    mask = torch.tensor([[5, -7], [0, 3]], dtype=torch.int32)
    torch.library.opcheck(op, (torch.randn(2, 60), mask, None))
    torch.library.opcheck(op, (torch.randn(2, 60), mask, torch.tensor([1])))


L, M = torch.zeros(2, 64), torch.zeros(2, 2, dtype=torch.int32)
BAD = [
    ((L.double(), M, None), "logits: expected bfloat16 or float16 or float32, got float64"),
    ((L[None], M, None), "logits: expected 1-D or 2-D [rows, vocabulary], got 3-D [1, 2, 64]"),
    ((L[:, ::2], M, None), "logits.stride(-1): expected 1, got 2"),
    ((L, M.long(), None), "bitmask: expected int32 (32 tokens a word), got int64"),
    ((L, M[:1], None), "bitmask: expected 2 rows (those of logits), got 1"),
    ((L, M.to("meta"), None), "bitmask: expected a tensor on cpu (device of logits), got one on meta"),
    ((L, M, M), "indices: expected 1-D [count], got 2-D [2, 2]"),
    ((L, M, torch.zeros(2)), "indices: expected int32 or int64, got float32"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments(arguments: tuple[Tensor, Tensor, Tensor | None], message: str) -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.ops.sgl_kernel.apply_token_bitmask_inplace_cuda(*arguments)
    assert str(failure.value) == f"{OP}: {message}"
