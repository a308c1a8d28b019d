"""Masks for grammar-guided sampling: the logits of forbidden tokens become minus infinity."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernel._checks import (
    Argument,
    check_device,
    check_dim,
    check_dtype,
    check_dtype_in,
    check_last_stride,
    fail,
    shape,
)
from sgl_kernel._library import fakes, implements, ops

__all__ = ["apply_token_bitmask_inplace_cuda"]


def apply_token_bitmask_inplace_cuda(
    logits: Tensor, bitmask: Tensor, indices: list[int] | Tensor | None = None
) -> None:
    """Sets the logits of the tokens whose bit is 0 to minus infinity, in place.

    logits: [rows, vocabulary] or [vocabulary], float32, float16 or bfloat16; any row stride, last stride 1.
    bitmask: int32 [rows, words] or [words]; bit ``t % 32`` of word ``t // 32`` belongs to token t. Tokens
        beyond its last word keep their logits.
    indices: the rows to mask, of logits and bitmask alike; None: all, of which both have as many. Indices
        outside of either are skipped. A list is copied to the device: inside a graph capture pass a tensor.

    Raises RuntimeError for other shapes, dtypes and devices.
    """
    if isinstance(indices, list):
        rows: Tensor | None = torch.tensor(indices, dtype=torch.int32, device=logits.device)
    elif indices is None:
        rows = None
    else:
        dtype = indices.dtype if indices.dtype in _INDEX_DTYPES else torch.int32
        rows = indices.to(logits.device, dtype)
    _apply(logits, bitmask, rows)


_OP = "apply_token_bitmask_inplace_cuda"
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_INDEX_DTYPES = (torch.int32, torch.int64)

_apply = ops.apply_token_bitmask_inplace_cuda.default


def _rows(t: Tensor) -> int:
    """A vector is a matrix of one row."""
    return t.size(0) if t.dim() == 2 else 1


def _check_rows(a: Argument, meaning: str) -> None:
    if a.tensor.dim() not in (1, 2):
        fail(a.op, a.name, f"1-D or 2-D {meaning}", f"{a.tensor.dim()}-D {shape(a.tensor)}")
    check_last_stride(a)


def _check(logits: Tensor, bitmask: Tensor, indices: Tensor | None) -> None:
    a = Argument(_OP, "logits", logits)
    check_dtype_in(a, _DTYPES)
    _check_rows(a, "[rows, vocabulary]")
    a = Argument(_OP, "bitmask", bitmask)
    check_dtype(a, torch.int32, "32 tokens a word")
    check_device(a, logits.device, "device of logits")
    _check_rows(a, "[rows, words]")
    if indices is not None:
        a = Argument(_OP, "indices", indices)
        check_dim(a, 1, "[count]")
        check_dtype_in(a, _INDEX_DTYPES)
        check_device(a, logits.device, "device of logits")
        check_last_stride(a)
    elif _rows(bitmask) != _rows(logits):
        fail(_OP, "bitmask", f"{_rows(logits)} rows (those of logits)", _rows(bitmask))


@fakes(_OP)
def _apply_fake(logits: Tensor, bitmask: Tensor, indices: Tensor | None = None) -> None:
    _check(logits, bitmask, indices)


@implements(_OP)
def _apply_cpu(logits: Tensor, bitmask: Tensor, indices: Tensor | None = None) -> None:
    _check(logits, bitmask, indices)
    matrix, masks = (t if t.dim() == 2 else t.unsqueeze(0) for t in (logits, bitmask))
    rows = min(matrix.size(0), masks.size(0))
    chosen = torch.arange(rows) if indices is None else indices[(indices >= 0) & (indices < rows)].unique()
    bits = masks[chosen].unsqueeze(-1) >> torch.arange(32, dtype=torch.int32) & 1
    tokens = min(matrix.size(1), 32 * masks.size(1))
    is_forbidden = bits.reshape(chosen.numel(), 32 * masks.size(1))[:, :tokens] == 0
    matrix[chosen, :tokens] = matrix[chosen, :tokens].masked_fill(is_forbidden, -torch.inf)
