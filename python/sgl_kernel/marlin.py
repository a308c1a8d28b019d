"""Repacking of quantized weights into the tiles that the Marlin GEMM reads.

Weights Q[k, n] of 4 or 8 bits come as int32 words and leave as int32 [size_k / 16, size_n * num_bits / 2], a
new tensor; ``size_k`` is a multiple of 16, ``size_n`` of 64. A row of the result is a row of tiles of 16 rows
and 64 columns. In a tile, lane l has rows r = 2 * (l % 4), r + 1, r + 8, r + 9 of columns c = 16 * j + l // 4
and c + 8, for j = 0 ... 3; x = 0 ... 7 counts the rows of c, then those of c + 8.

* 4 bits: word 4 * l + j; its nibbles, from the lowest, hold x = 0, 2, 4, 6, 1, 3, 5, 7.
* 8 bits: words 8 * l + 2 * j (column c) and the next (c + 8); their bytes hold rows r, r + 8, r + 1, r + 9.

The words in: AWQ packs 32 / num_bits neighbours along n, in the order of the values above; GPTQ packs as many
along k, in their order. Other bits than these are never looked at: float8 weights pass as bytes. A violation
raises RuntimeError. Source: Frantar et al., "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on
Large Language Models", 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernel._checks import Argument, check_dim, check_size, fail
from sgl_kernel._library import fakes, implements, ops
from sgl_kernel._packed import (
    AWQ_FIELDS,
    AWQ_ORDER,
    check_dense,
    check_int,
    check_multiple,
    pack_fields,
    unpack_columns,
    unpack_rows,
)

__all__ = ["awq_marlin_moe_repack", "awq_marlin_repack", "gptq_marlin_repack"]


def gptq_marlin_repack(b_q_weight: Tensor, perm: Tensor, size_k: int, size_n: int, num_bits: int) -> Tensor:
    """GPTQ words [size_k * num_bits / 32, size_n] in Marlin's tiles.

    ``perm``: int32 [size_k], row k of the result is row ``perm[k]`` of the weights (act-order); or empty, and
    the order stays. On a GPU, a row that does not exist reads as zeros.
    """
    packed: Tensor = _gptq_marlin_repack(b_q_weight, perm, size_k, size_n, num_bits)
    return packed


def awq_marlin_repack(b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int) -> Tensor:
    """AWQ words [size_k, size_n * num_bits / 32] in Marlin's tiles."""
    packed: Tensor = _awq_marlin_repack(b_q_weight, size_k, size_n, num_bits)
    return packed


def awq_marlin_moe_repack(
    b_q_weight: Tensor, perm: Tensor, size_k: int, size_n: int, num_bits: int
) -> Tensor:
    """``awq_marlin_repack`` of every expert: [experts, ...] in and out. ``perm`` is not read."""
    packed: Tensor = _awq_marlin_moe_repack(b_q_weight, perm, size_k, size_n, num_bits)
    return packed


_gptq_marlin_repack = ops.gptq_marlin_repack.default
_awq_marlin_repack = ops.awq_marlin_repack.default
_awq_marlin_moe_repack = ops.awq_marlin_moe_repack.default


def _check_sizes(op: str, size_k: int, size_n: int, num_bits: int) -> None:
    if num_bits not in (4, 8):
        fail(op, "num_bits", "4 or 8", num_bits)
    check_multiple(op, "size_k", size_k, 16)
    check_multiple(op, "size_n", size_n, 64)
    check_int(op, "size_k", size_k)
    check_int(op, "size_n", size_n)


def _to_marlin(values: Tensor, bits: int) -> Tensor:
    """[K, N] to [K / 16, N * bits / 2]."""
    size_k, size_n = values.shape
    # Row 8 * upper + 2 * (l % 4) + odd, column 64 * block + 16 * j + 8 * half + l // 4.
    tiles = values.reshape(size_k // 16, 2, 4, 2, size_n // 64, 4, 2, 8)
    lanes = tiles.permute(0, 4, 7, 2, 5, 6, 1, 3)  # row of tiles, block, l // 4, l % 4, j, half, upper, odd
    per_word = 32 // bits
    fields = lanes.reshape(size_k // 16, size_n * bits // 2, per_word)[..., AWQ_ORDER[bits]]
    return pack_fields(fields, bits)


def _empty(b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int, *leading: int) -> Tensor:
    return b_q_weight.new_empty((*leading, size_k // 16, size_n * num_bits // 2))


def _check_awq(b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int) -> None:
    a = Argument("awq_marlin_repack", "b_q_weight", b_q_weight)
    _check_sizes(a.op, size_k, size_n, num_bits)
    check_dim(a, 2, "[size_k, size_n * num_bits / 32]")
    check_size(a, 0, size_k, "size_k")
    check_size(a, 1, size_n * num_bits // 32, "size_n * num_bits / 32")
    check_dense(a, torch.int32, "packed weights", a)


def _repack_awq(b_q_weight: Tensor, size_k: int, size_n: int, bits: int) -> Tensor:
    words = unpack_columns(b_q_weight, bits).reshape(size_k, size_n * bits // 32, 32 // bits)
    return _to_marlin(words[..., AWQ_FIELDS[bits]].reshape(size_k, size_n), bits)


@fakes("awq_marlin_repack")
def _awq_marlin_repack_fake(b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int) -> Tensor:
    _check_awq(b_q_weight, size_k, size_n, num_bits)
    return _empty(b_q_weight, size_k, size_n, num_bits)


@implements("awq_marlin_repack")
def _awq_marlin_repack_cpu(b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int) -> Tensor:
    _check_awq(b_q_weight, size_k, size_n, num_bits)
    return _repack_awq(b_q_weight, size_k, size_n, num_bits)


def _check_awq_moe(b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int) -> None:
    a = Argument("awq_marlin_moe_repack", "b_q_weight", b_q_weight)
    _check_sizes(a.op, size_k, size_n, num_bits)
    check_dim(a, 3, "[experts, size_k, size_n * num_bits / 32]")
    check_size(a, 1, size_k, "size_k")
    check_size(a, 2, size_n * num_bits // 32, "size_n * num_bits / 32")
    check_dense(a, torch.int32, "packed weights", a)


@fakes("awq_marlin_moe_repack")
def _awq_marlin_moe_repack_fake(
    b_q_weight: Tensor, perm: Tensor, size_k: int, size_n: int, num_bits: int
) -> Tensor:
    _check_awq_moe(b_q_weight, size_k, size_n, num_bits)
    return _empty(b_q_weight, size_k, size_n, num_bits, b_q_weight.size(0))


@implements("awq_marlin_moe_repack")
def _awq_marlin_moe_repack_cpu(
    b_q_weight: Tensor, perm: Tensor, size_k: int, size_n: int, num_bits: int
) -> Tensor:
    _check_awq_moe(b_q_weight, size_k, size_n, num_bits)
    experts = b_q_weight.size(0)
    rows = b_q_weight.reshape(experts * size_k, size_n * num_bits // 32)
    packed = _repack_awq(rows, experts * size_k, size_n, num_bits)
    return packed.view(experts, size_k // 16, size_n * num_bits // 2)


def _check_gptq(b_q_weight: Tensor, perm: Tensor, size_k: int, size_n: int, num_bits: int) -> None:
    a = Argument("gptq_marlin_repack", "b_q_weight", b_q_weight)
    _check_sizes(a.op, size_k, size_n, num_bits)
    check_dim(a, 2, "[size_k * num_bits / 32, size_n]")
    check_size(a, 0, size_k * num_bits // 32, "size_k * num_bits / 32")
    check_size(a, 1, size_n, "size_n")
    check_dense(a, torch.int32, "packed weights", a)
    if perm.numel() != 0:
        b = Argument(a.op, "perm", perm)
        check_dim(b, 1, "[size_k], or empty")
        check_size(b, 0, size_k, "size_k")
        check_dense(b, torch.int32, "indices", a)


@fakes("gptq_marlin_repack")
def _gptq_marlin_repack_fake(
    b_q_weight: Tensor, perm: Tensor, size_k: int, size_n: int, num_bits: int
) -> Tensor:
    _check_gptq(b_q_weight, perm, size_k, size_n, num_bits)
    return _empty(b_q_weight, size_k, size_n, num_bits)


@implements("gptq_marlin_repack")
def _gptq_marlin_repack_cpu(
    b_q_weight: Tensor, perm: Tensor, size_k: int, size_n: int, num_bits: int
) -> Tensor:
    _check_gptq(b_q_weight, perm, size_k, size_n, num_bits)
    values = unpack_rows(b_q_weight, num_bits)
    return _to_marlin(values if perm.numel() == 0 else values[perm.long()], num_bits)
