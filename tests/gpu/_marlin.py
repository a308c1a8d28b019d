"""Random weights in Marlin's layouts, and what they stand for in float64.

The packed words are drawn at random and read by the formulas of the CPU kernel, which tests/wheel holds
against a packer of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from sgl_kernel import _marlin_gemm as marlin
from sgl_kernel.scalar_type import ScalarType, scalar_types
from torch import Tensor

__all__ = ["TYPES", "MarlinWeight", "random_weight"]

TYPES = (scalar_types.uint4, scalar_types.uint4b8, scalar_types.uint8b128, scalar_types.float8_e4m3fn)
_FLOAT8_DTYPE = torch.float8_e4m3fn
_FLOAT8 = scalar_types.float8_e4m3fn
_FLOAT8_FACTOR = {torch.float16: 2.0**8, torch.bfloat16: 2.0**120}


@dataclass
class MarlinWeight:
    """What the op takes for W [k, n]; ``perm`` and ``g_idx`` are empty without act-order."""

    type: ScalarType
    packed: Tensor
    scales: Tensor
    zeros: Tensor
    g_idx: Tensor
    perm: Tensor
    workspace: Tensor
    size_n: int
    size_k: int

    def arguments(self, a: Tensor, c: Tensor | None = None) -> tuple[Any, ...]:
        operands = (self.packed, self.scales, None, self.zeros, self.g_idx, self.perm, self.workspace)
        return a, c, *operands, self.type, a.size(0), self.size_n, self.size_k

    def op_arguments(self, a: Tensor) -> tuple[Any, ...]:
        """Of the torch op, whose outputs the caller allocates."""
        optional = [x if x.numel() else None for x in (self.zeros, self.g_idx, self.perm)]
        c = torch.empty(a.size(0), self.size_n, dtype=a.dtype, device=a.device)
        sizes = (a.size(0), self.size_n, self.size_k, 0)
        return a, c, self.packed, self.scales, *optional, self.workspace, None, self.type.id, *sizes

    def columns(self, begin: int, end: int) -> MarlinWeight:
        """Those alone, from one multiple of 64 to another."""
        words = self.type.size_bits // 2
        return replace(
            self,
            packed=self.packed[:, begin * words : end * words],
            scales=self.scales[:, begin:end],
            zeros=self.zeros[:, begin // 8 : end // 8] if self.zeros.numel() else self.zeros,
            size_n=end - begin,
        )

    def dense(self) -> Tensor:
        """W [k, n] in float64, exact; its rows go with the columns of ``a`` (not of the permuted ``a``)."""
        groups = self.scales.size(0)
        device = self.packed.device
        rows = torch.arange(self.size_k, device=device) * groups // self.size_k
        if self.g_idx.numel() and groups > 1:
            rows = self.g_idx.long()
        scales = marlin.unpack_scales(self.scales, groups == 1).double()
        q = marlin.unpack_weight(self.packed, self.type.size_bits)
        if self.type == _FLOAT8:
            values = q.to(torch.uint8).view(_FLOAT8_DTYPE).double() / _FLOAT8_FACTOR[self.scales.dtype]
        elif self.zeros.numel():
            values = (q - marlin.unpack_zeros(self.zeros, self.size_n)[rows]).double()
        else:
            values = (q - self.type.bias).double()
        dense = values * scales[rows]
        if self.perm.numel():
            dense[self.perm.long()] = dense.clone()
        return dense


def random_weight(
    type_: ScalarType,
    size_n: int,
    size_k: int,
    group_size: int,
    dtype: torch.dtype,
    device: str,
    *,
    is_act_order: bool = False,
    seed: int = 0,
) -> MarlinWeight:
    """Drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    groups = 1 if group_size == -1 else size_k // group_size
    words = size_k // 16 * size_n * type_.size_bits // 2
    data = torch.randint(0, 256, (words * 4,), generator=generator, dtype=torch.uint8)
    if type_ == _FLOAT8:
        data[(data & 127) == 127] = 0x38  # no NaN
    scales = torch.rand(groups, size_n, generator=generator) * 0.02 + 0.01
    factor = _FLOAT8_FACTOR[dtype] if type_ == _FLOAT8 else 1.0
    empty = torch.empty(0, dtype=torch.int32, device=device)
    zeros = perm = g_idx = empty
    if type_ == scalar_types.uint4:
        bits = torch.randint(-(2**31), 2**31, (groups, size_n // 8), generator=generator)
        zeros = bits.int().to(device)
    if is_act_order:
        original = (torch.arange(size_k) * groups // size_k)[torch.randperm(size_k, generator=generator)]
        order = torch.argsort(original)
        perm, g_idx = order.int().to(device), original[order].int().to(device)
    return MarlinWeight(
        type=type_,
        packed=data.view(torch.int32).view(size_k // 16, -1).to(device),
        scales=(scales.to(dtype) * factor).to(device),
        zeros=zeros,
        g_idx=g_idx,
        perm=perm,
        workspace=torch.zeros(512, dtype=torch.int32, device=device),
        size_n=size_n,
        size_k=size_k,
    )
