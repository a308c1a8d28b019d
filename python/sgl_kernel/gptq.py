"""GPTQ weights of 2, 3, 4 or 8 bits: ``w[k, n] = (q[k, n] - zero[g, n]) * scales[g, n]``.

``q``: int32 words [in * bit / 32, out]; a column is a little-endian bit stream along k. Zero points: int32
[groups, out * bit / 32], the same along n, each stored less 1. Scales: float16 [groups, out]. Source: Frantar
et al., "GPTQ: Accurate Post-Training Quantization", 2022, and the packing of AutoGPTQ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernel._checks import (
    Argument,
    check_device,
    check_dim,
    check_dtype,
    check_last_stride,
    check_size,
    fail,
)
from sgl_kernel._library import fakes, implements, ops
from sgl_kernel._packed import (
    check_dense,
    check_int,
    check_multiple,
    pack_rows,
    unpack_columns,
    unpack_rows,
)

__all__ = ["gptq_gemm", "gptq_shuffle"]


def gptq_gemm(
    a: Tensor,
    b_q_weight: Tensor,
    b_gptq_qzeros: Tensor,
    b_gptq_scales: Tensor,
    b_g_idx: Tensor,
    use_shuffle: bool,
    bit: int,
) -> Tensor:
    """``a @ w``: a new float16 tensor [tokens, out], summed in float32, the same at every run.

    ``a``: float16 [tokens, in], last stride 1. ``b_g_idx``: int32 [in], or empty. Without ``use_shuffle``
    the weights are those of the checkpoint and row k has group ``b_g_idx[k]``. With it they went through
    ``gptq_shuffle``: row k multiplies column ``b_g_idx[k]`` of ``a``, and groups are consecutive rows, as
    they are wherever ``b_g_idx`` is empty. On a GPU, a row whose index does not exist counts as zeros. A
    violation raises RuntimeError.
    """
    out: Tensor = _gptq_gemm(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_shuffle, bit)
    return out


def gptq_shuffle(q_weight: Tensor, q_perm: Tensor, bit: int) -> None:
    """In place, puts GPTQ weights into the order in which ``gptq_gemm`` reads them with ``use_shuffle``.

    ``q_perm``: int32 [in], row k becomes row ``q_perm[k]`` (act-order); or empty, and nothing moves. On a
    GPU, a row that does not exist reads as zeros. A violation raises RuntimeError.
    """
    _gptq_shuffle(q_weight, q_perm, bit)


_gptq_gemm = ops.gptq_gemm.default
_gptq_shuffle = ops.gptq_shuffle.default


def _check_weight(a: Argument, bit: int) -> int:
    """Returns the number of input features."""
    if bit not in (2, 3, 4, 8):
        fail(a.op, "bit", "2, 3, 4 or 8", bit)
    check_dim(a, 2, "[in * bit / 32, out]")
    check_dense(a, torch.int32, "packed weights", a)
    words: int = a.tensor.size(0)
    if words * 32 % bit != 0:
        fail(a.op, f"{a.name}.size(0)", "a multiple of 3", words)
    return words * 32 // bit


def _check_indices(a: Argument, rows: int, weight: Argument) -> None:
    if a.tensor.numel() == 0:
        return
    check_dim(a, 1, "[in], or empty")
    check_size(a, 0, rows, "input features")
    check_dense(a, torch.int32, "indices", weight)


def _check_gemm(
    a: Tensor,
    b_q_weight: Tensor,
    b_gptq_qzeros: Tensor,
    b_gptq_scales: Tensor,
    b_g_idx: Tensor,
    use_shuffle: bool,
    bit: int,
) -> None:
    op = "gptq_gemm"
    weight = Argument(op, "b_q_weight", b_q_weight)
    rows, columns = _check_weight(weight, bit), b_q_weight.size(1)
    check_multiple(op, "b_q_weight.size(1)", columns, 32 if bit == 3 else 32 // bit)
    check_int(op, "b_q_weight.size(1)", columns)
    check_int(op, "a.size(1)", rows)

    b = Argument(op, "a", a)
    check_dim(b, 2, "[tokens, in]")
    check_size(b, 1, rows, "32 / bit * b_q_weight.size(0)")
    check_int(op, "a.size(0)", a.size(0))
    check_dtype(b, torch.float16, "activations")
    check_device(b, b_q_weight.device, "device of b_q_weight")
    check_last_stride(b)

    b = Argument(op, "b_gptq_scales", b_gptq_scales)
    check_dim(b, 2, "[groups, out]")
    check_size(b, 1, columns, "b_q_weight.size(1)")
    check_dense(b, torch.float16, "dtype of a", weight)
    groups = b_gptq_scales.size(0)

    b = Argument(op, "b_gptq_qzeros", b_gptq_qzeros)
    check_dim(b, 2, "[groups, out * bit / 32]")
    check_size(b, 0, groups, "b_gptq_scales.size(0)")
    check_size(b, 1, columns * bit // 32, "b_q_weight.size(1) * bit / 32")
    check_dense(b, torch.int32, "packed zero points", weight)

    _check_indices(Argument(op, "b_g_idx", b_g_idx), rows, weight)
    has_groups_of_rows = b_g_idx.numel() != 0 and not use_shuffle
    if groups == 0 or (not has_groups_of_rows and rows % groups != 0):
        fail(op, "b_gptq_scales.size(0)", f"a divisor of {rows} (input features)", groups)
    if rows == 0 and a.size(0) * columns != 0:
        fail(op, "a.size(1)", "at least 1", 0)


@fakes("gptq_gemm")
def _gptq_gemm_fake(
    a: Tensor,
    b_q_weight: Tensor,
    b_gptq_qzeros: Tensor,
    b_gptq_scales: Tensor,
    b_g_idx: Tensor,
    use_shuffle: bool,
    bit: int,
) -> Tensor:
    _check_gemm(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_shuffle, bit)
    return a.new_empty((a.size(0), b_q_weight.size(1)))


@implements("gptq_gemm")
def _gptq_gemm_cpu(
    a: Tensor,
    b_q_weight: Tensor,
    b_gptq_qzeros: Tensor,
    b_gptq_scales: Tensor,
    b_g_idx: Tensor,
    use_shuffle: bool,
    bit: int,
) -> Tensor:
    _check_gemm(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_shuffle, bit)
    rows = a.size(1)
    if a.size(0) == 0 or b_q_weight.size(1) == 0:
        return a.new_empty((a.size(0), b_q_weight.size(1)))
    group = torch.arange(rows, device=a.device) // (rows // b_gptq_scales.size(0) or 1)
    if b_g_idx.numel() != 0:
        if use_shuffle:
            a = a[:, b_g_idx.long()]
        else:
            group = b_g_idx.long()
    zeros = unpack_columns(b_gptq_qzeros, bit) + 1
    difference = unpack_rows(b_q_weight, bit) - zeros[group]
    return (a.float() @ (difference.float() * b_gptq_scales.float()[group])).half()


def _check_shuffle(q_weight: Tensor, q_perm: Tensor, bit: int) -> None:
    weight = Argument("gptq_shuffle", "q_weight", q_weight)
    rows = _check_weight(weight, bit)
    check_int(weight.op, "q_weight.size(0) * 32 / bit", rows)
    check_int(weight.op, "q_weight.size(1)", q_weight.size(1))
    _check_indices(Argument(weight.op, "q_perm", q_perm), rows, weight)


@fakes("gptq_shuffle")
def _gptq_shuffle_fake(q_weight: Tensor, q_perm: Tensor, bit: int) -> None:
    _check_shuffle(q_weight, q_perm, bit)


@implements("gptq_shuffle")
def _gptq_shuffle_cpu(q_weight: Tensor, q_perm: Tensor, bit: int) -> None:
    _check_shuffle(q_weight, q_perm, bit)
    if q_perm.numel() != 0:
        q_weight.copy_(pack_rows(unpack_rows(q_weight, bit)[q_perm.long()], bit))
