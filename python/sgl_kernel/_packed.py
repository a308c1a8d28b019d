"""Integers of 2, 3, 4 or 8 bits packed into int32 words: what the quantization families share on the CPU.

The checks are those of csrc/ops/packed_checks.h, in the same words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernel._checks import Argument, check_device, check_dtype, fail

__all__ = [
    "AWQ_FIELDS",
    "AWQ_ORDER",
    "check_contiguous",
    "check_dense",
    "check_int",
    "check_multiple",
    "pack_fields",
    "pack_rows",
    "unpack_columns",
    "unpack_rows",
]

# Field t of a word (bits t * bits and up) holds value AWQ_ORDER[bits][t] of its 32 / bits neighbours; value c
# is in field AWQ_FIELDS[bits][c]. AWQ packs so along N, Marlin within a tile.
AWQ_ORDER = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}
AWQ_FIELDS = {4: [0, 4, 1, 5, 2, 6, 3, 7], 8: [0, 2, 1, 3]}


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """[rows * bits / 32, columns] int32 to [rows, columns] int64: each column is a little-endian stream."""
    count = words.size(0) * 32 // bits
    bit = torch.arange(count, device=words.device) * bits
    low = words.long() & 0xFFFFFFFF
    stream = low | (low.roll(-1, 0) << 32)  # 64 bits from each word on; of the last, 32 are never looked at
    return (stream[bit // 32] >> (bit % 32).unsqueeze(1)) & (2**bits - 1)


def unpack_columns(words: Tensor, bits: int) -> Tensor:
    """[rows, columns * bits / 32] int32 to [rows, columns] int64, along the rows."""
    return unpack_rows(words.t(), bits).t()


def pack_rows(values: Tensor, bits: int) -> Tensor:
    """The inverse of ``unpack_rows``."""
    count = values.size(0) * bits // 32
    bit = torch.arange(values.size(0), device=values.device) * bits
    shifted = values << (bit % 32).unsqueeze(1)
    words = torch.zeros(count + 1, values.size(1), dtype=torch.int64, device=values.device)
    words.index_add_(0, bit // 32, shifted & 0xFFFFFFFF)
    words.index_add_(0, bit // 32 + 1, shifted >> 32)
    return _low_words(words[:count])


def pack_fields(values: Tensor, bits: int) -> Tensor:
    """[..., 32 / bits] to words [...]: value t goes to bits t * bits and up."""
    shifts = torch.arange(values.size(-1), device=values.device) * bits
    return _low_words((values << shifts).sum(-1))


def check_contiguous(a: Argument) -> None:
    expected = 1
    for d in reversed(range(a.tensor.dim())):
        if a.tensor.numel() != 0 and a.tensor.size(d) != 1 and a.tensor.stride(d) != expected:
            got = f"stride {a.tensor.stride(d)} of dimension {d}"
            fail(a.op, a.name, "a contiguous tensor", got)
        expected *= a.tensor.size(d)


def check_dense(a: Argument, dtype: torch.dtype, dtype_reason: str, like: Argument) -> None:
    """A contiguous tensor of that dtype on the device of ``like``."""
    check_dtype(a, dtype, dtype_reason)
    check_device(a, like.tensor.device, f"device of {like.name}")
    check_contiguous(a)


def check_multiple(op: str, name: str, value: int, divisor: int) -> None:
    if value < 0 or value % divisor != 0:
        fail(op, name, f"a multiple of {divisor}", value)


def check_int(op: str, name: str, value: int) -> None:
    if value >= 2**31:
        fail(op, name, "less than 2147483648", value)


def _low_words(values: Tensor) -> Tensor:
    return values.contiguous().unsqueeze(-1).view(torch.int32)[..., 0].contiguous()
