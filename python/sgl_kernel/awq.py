"""AWQ weights of 4 bits: ``out[k, n] = (q[k, n] - zero[g, n]) * scales[g, n]`` with g = k // group size.

Words of int32 hold eight neighbours along n; from the lowest bits up, columns 0, 2, 4, 6, 1, 3, 5, 7.
Source: Lin et al., "AWQ: Activation-aware Weight Quantization", 2023, and the "gemm" packing of AutoAWQ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernel._checks import Argument, check_device, check_dim, check_dtype_in, check_size, fail
from sgl_kernel._library import fakes, implements, ops
from sgl_kernel._packed import AWQ_FIELDS, check_contiguous, check_dense, check_int, unpack_columns

__all__ = ["awq_dequantize"]


def awq_dequantize(qweight: Tensor, scales: Tensor, qzeros: Tensor) -> Tensor:
    """A new tensor [in, out] in the dtype of ``scales``; the product is rounded once.

    ``qweight`` int32 [in, out / 8], ``scales`` float16 or bfloat16 [groups, out], ``qzeros`` int32 [groups,
    out / 8], all contiguous; groups divides in. A violation raises RuntimeError.
    """
    weights: Tensor = _awq_dequantize(qweight, scales, qzeros)
    return weights


_awq_dequantize = ops.awq_dequantize.default


def _check(qweight: Tensor, scales: Tensor, qzeros: Tensor) -> None:
    a = Argument("awq_dequantize", "qweight", qweight)
    check_dim(a, 2, "[in, out / 8]")
    check_dense(a, torch.int32, "packed weights", a)
    rows, words = qweight.shape
    check_int(a.op, "qweight.size(0)", rows)
    check_int(a.op, "qweight.size(1)", words * 8)

    b = Argument(a.op, "scales", scales)
    check_dim(b, 2, "[groups, out]")
    check_size(b, 1, words * 8, "8 * qweight.size(1)")
    check_dtype_in(b, (torch.float16, torch.bfloat16))
    check_device(b, qweight.device, "device of qweight")
    check_contiguous(b)
    groups = scales.size(0)
    if rows != 0 and (groups == 0 or rows % groups != 0):
        fail(a.op, "scales.size(0)", f"a divisor of {rows} (qweight.size(0))", groups)

    b = Argument(a.op, "qzeros", qzeros)
    check_dim(b, 2, "[groups, out / 8]")
    check_size(b, 0, groups, "scales.size(0)")
    check_size(b, 1, words, "qweight.size(1)")
    check_dense(b, torch.int32, "packed zero points", a)


def _unpack(words: Tensor) -> Tensor:
    fields = unpack_columns(words, 4).reshape(words.size(0), words.size(1), 8)
    return fields[..., AWQ_FIELDS[4]].reshape(words.size(0), words.size(1) * 8)


@fakes("awq_dequantize")
def _awq_dequantize_fake(qweight: Tensor, scales: Tensor, qzeros: Tensor) -> Tensor:
    _check(qweight, scales, qzeros)
    return scales.new_empty((qweight.size(0), qweight.size(1) * 8))


@implements("awq_dequantize")
def _awq_dequantize_cpu(qweight: Tensor, scales: Tensor, qzeros: Tensor) -> Tensor:
    _check(qweight, scales, qzeros)
    rows = qweight.size(0)
    if rows == 0:
        return scales.new_empty((0, scales.size(1)))
    group = torch.arange(rows, device=qweight.device) // (rows // scales.size(0))
    difference = _unpack(qweight) - _unpack(qzeros)[group]
    return (difference.float() * scales.float()[group]).to(scales.dtype)
