"""The CPU kernel and the fake of ``gptq_marlin_gemm``, and Marlin's layouts as index formulas.

A Marlin tile has 16 rows (k) and 64 columns (n); lane 4 (n % 8) + k % 8 / 2 owns a value. The order of
values in a word is that of ``_ORDER``. Source: Frantar et al., "MARLIN: Mixed-Precision Auto-Regressive
Parallel Inference on Large Language Models", 2024.
"""

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
    check_size,
    fail,
)
from sgl_kernel._library import fakes, implements
from sgl_kernel.scalar_type import scalar_types

__all__ = ["OP", "unpack_scales", "unpack_weight", "unpack_zeros"]

OP = "gptq_marlin_gemm"

_UINT4, _FLOAT8 = scalar_types.uint4.id, scalar_types.float8_e4m3fn.id
_BITS = {_UINT4: 4, scalar_types.uint4b8.id: 4, scalar_types.uint8b128.id: 8, _FLOAT8: 8}
_BIAS = {scalar_types.uint4b8.id: 8, scalar_types.uint8b128.id: 128}
# Field t of a word holds value _ORDER[bits][t].
_ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
_GROUP_SIZES = (32, 64, 128)
# Bit moves of e4m3 into a wider float scale its value by this; callers' scales undo it.
_FLOAT8_SCALE = {torch.float16: 2.0**-8, torch.bfloat16: 2.0**-120}


def unpack_weight(packed: Tensor, bits: int) -> Tensor:
    """Marlin tiles, int32 [k / 16, n * bits / 2], as the integers [k, n] (int32)."""
    size_k, size_n = packed.size(0) * 16, packed.size(1) * 2 // bits
    k = torch.arange(size_k, device=packed.device)[:, None]
    n = torch.arange(size_n, device=packed.device)[None, :]
    lane = 4 * (n % 8) + k % 8 // 2
    pair, half = n % 64 // 16, n % 16 // 8  # of the lane's words: 16 columns, and which 8 of them
    in_half = 2 * (k % 16 // 8) + k % 2
    field = torch.tensor(_ORDER[bits], device=packed.device).argsort()
    if bits == 4:
        word = n // 64 * 128 + 4 * lane + pair
        shift = 4 * field[4 * half + in_half]
    else:
        word = n // 64 * 256 + 8 * lane + 2 * pair + half
        shift = 8 * field[in_half]
    return (packed[k // 16, word] >> shift) & (2**bits - 1)


def unpack_scales(scales: Tensor, is_single: bool) -> Tensor:
    """[groups, n] in the order of columns. ``is_single``: one group, permuted per 32 columns, not 64."""
    n = torch.arange(scales.size(1), device=scales.device)
    if is_single:
        return scales[:, n // 32 * 32 + n % 8 // 2 * 8 + n % 32 // 8 * 2 + n % 2]
    return scales[:, n // 64 * 64 + n % 8 * 8 + n % 64 // 8]


def unpack_zeros(zeros: Tensor, size_n: int) -> Tensor:
    """4-bit zero points, int32 [groups, n / 8], as integers [groups, n]."""
    n = torch.arange(size_n, device=zeros.device)
    field = torch.tensor(_ORDER[4], device=zeros.device).argsort()
    return (zeros[:, n // 64 * 8 + n % 8] >> (4 * field[n % 64 // 8])) & 15


def _dequantize(
    weight: Tensor, scales: Tensor, zeros: Tensor | None, groups_of_rows: Tensor, type_id: int
) -> Tensor:
    """[k, n] float32, each weight rounded to the dtype of the scales."""
    q = unpack_weight(weight, _BITS[type_id])
    s = unpack_scales(scales, scales.size(0) == 1)[groups_of_rows]
    if type_id == _FLOAT8:
        values = q.to(torch.uint8).view(torch.float8_e4m3fn).double() * _FLOAT8_SCALE[scales.dtype]
    else:
        z = unpack_zeros(zeros, s.size(1))[groups_of_rows] if zeros is not None else _BIAS[type_id]
        values = (q - z).double()
    return (values * s.double()).to(scales.dtype).float()


def _is_given(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.numel() > 0


def _check_operand(
    name: str, x: Tensor, sizes: tuple[tuple[int, str], ...], dtype: torch.dtype, a: Tensor
) -> None:
    arg = Argument(OP, name, x)
    check_dim(arg, len(sizes), "(a matrix)" if len(sizes) == 2 else "(a vector)")
    for d, (size, reason) in enumerate(sizes):
        check_size(arg, d, size, reason)
    check_device(arg, a.device, "device of a")
    check_dtype(arg, dtype, "dtype of a" if dtype == a.dtype else "fixed by the op")
    check_last_stride(arg)


def _check_rows(name: str, x: Tensor) -> None:
    if x.size(0) > 1 and x.stride(0) != x.size(1):
        fail(OP, f"{name}.stride(0)", f"{x.size(1)} (contiguous)", x.stride(0))


def _check_sizes(type_id: int, n: int, k: int) -> None:
    if type_id not in _BITS:
        fail(OP, "b_q_type", "uint4, uint4b8, uint8b128 or float8_e4m3fn", f"the type of id {type_id}")
    if n < 0 or n % 64:
        fail(OP, "size_n", "a multiple of 64", n)
    if k <= 0 or k % 128:
        fail(OP, "size_k", "a positive multiple of 128", k)


def _check_options(
    scales: Tensor, zeros: Tensor | None, g_idx: Tensor | None, perm: Tensor | None, type_id: int, k: int
) -> None:
    has_order, has_zeros = _is_given(g_idx), _is_given(zeros)
    if has_order != _is_given(perm):
        fail(OP, "g_idx, perm", "both or none", "one of them")
    if has_order and (has_zeros or type_id == _FLOAT8):
        fail(OP, "g_idx", "none with b_zeros or float8 weights", "one")
    if has_zeros != (type_id == _UINT4):
        expected = "none with this b_q_type" if has_zeros else "zero points with uint4"
        fail(OP, "b_zeros", expected, "some" if has_zeros else "none")
    groups = scales.size(0)
    if groups < 1:
        fail(OP, "b_scales.size(0)", "at least one group", 0)
    if groups > 1 and not has_order and (k % groups or k // groups not in _GROUP_SIZES):
        expected = f"1 group, or groups of 32, 64 or 128 of size_k's {k} rows"
        fail(OP, "b_scales.size(0)", expected, groups)


@fakes(OP)
def _check(
    a: Tensor,
    c: Tensor,
    b_q_weight: Tensor,
    b_scales: Tensor,
    b_zeros: Tensor | None,
    g_idx: Tensor | None,
    perm: Tensor | None,
    workspace: Tensor,
    b_bias: Tensor | None,
    b_q_type_id: int,
    size_m: int,
    size_n: int,
    size_k: int,
    path: int,
) -> None:
    _check_sizes(b_q_type_id, size_n, size_k)
    check_dtype_in(Argument(OP, "a", a), (torch.float16, torch.bfloat16))
    m, n, k = (size_m, "size_m"), (size_n, "size_n"), (size_k, "size_k")
    _check_operand("a", a, (m, k), a.dtype, a)
    _check_operand("c", c, (m, n), a.dtype, a)
    if size_m > 1 and c.stride(0) % 2:
        fail(OP, "c", "rows aligned to 4 bytes", f"a stride of {c.stride(0)} elements")
    words = (size_n * _BITS[b_q_type_id] // 2, "size_n * bits / 2")
    _check_operand("b_q_weight", b_q_weight, ((size_k // 16, "size_k / 16"), words), torch.int32, a)
    _check_rows("b_q_weight", b_q_weight)
    check_dim(Argument(OP, "b_scales", b_scales), 2, "[groups, size_n]")
    _check_operand("b_scales", b_scales, ((b_scales.size(0), "groups"), n), a.dtype, a)
    _check_rows("b_scales", b_scales)
    _check_options(b_scales, b_zeros, g_idx, perm, b_q_type_id, size_k)
    if b_zeros is not None and _is_given(b_zeros):
        sizes = ((b_scales.size(0), "b_scales.size(0)"), (size_n // 8, "size_n / 8"))
        _check_operand("b_zeros", b_zeros, sizes, torch.int32, a)
        _check_rows("b_zeros", b_zeros)
    for name, vector in (("g_idx", g_idx), ("perm", perm)):
        if vector is not None and _is_given(vector):
            _check_operand(name, vector, (k,), torch.int32, a)
    if b_bias is not None and _is_given(b_bias):
        _check_operand("b_bias", b_bias, (n,), a.dtype, a)
    workspace_arg = Argument(OP, "workspace", workspace)
    check_dtype(workspace_arg, torch.int32, "fixed by the op")
    check_device(workspace_arg, a.device, "device of a")


@implements(OP)
def _gptq_marlin_gemm_cpu(
    a: Tensor,
    c: Tensor,
    b_q_weight: Tensor,
    b_scales: Tensor,
    b_zeros: Tensor | None,
    g_idx: Tensor | None,
    perm: Tensor | None,
    workspace: Tensor,
    b_bias: Tensor | None,
    b_q_type_id: int,
    size_m: int,
    size_n: int,
    size_k: int,
    path: int,
) -> None:
    _check(
        *(a, c, b_q_weight, b_scales, b_zeros, g_idx, perm, workspace, b_bias),
        *(b_q_type_id, size_m, size_n, size_k, path),
    )
    groups = b_scales.size(0)
    rows = torch.arange(size_k) * groups // size_k
    if g_idx is not None and perm is not None and _is_given(g_idx):
        a = a[:, perm.long()]
        rows = g_idx.long().clamp(0, groups - 1) if groups > 1 else rows
    zeros = b_zeros if _is_given(b_zeros) else None
    out = a.float() @ _dequantize(b_q_weight, b_scales, zeros, rows, b_q_type_id)
    if b_bias is not None and _is_given(b_bias):
        out += unpack_scales(b_bias[None], is_single=True).float()
    c.copy_(out)
