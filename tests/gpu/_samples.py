"""One small call of every public function, and of every torch op, for tests that treat them all alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sgl_kernel
import torch
from sgl_kernel import FusedSetKVBufferArg
from sgl_kernel.scalar_type import ScalarType, scalar_types
from torch import Tensor

from ._marlin import random_weight

__all__ = ["OPS", "SAMPLES", "Sample"]


@dataclass
class Sample:
    """A call and the tensors that it writes; the same numbers at every construction, on every device."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    written: tuple[Tensor, ...]
    _before: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._before = [tensor.clone() for tensor in self.written]

    def call(self, **kwargs: Any) -> Any:
        return self.function(*self.args, **self.kwargs, **kwargs)

    def restore(self) -> None:
        """Puts the written tensors back, on the current stream."""
        for tensor, before in zip(self.written, self._before, strict=True):
            tensor.copy_(before)

    def results(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self.written]


def randn(device: str, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """Drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def unwritten(like: Tensor, *shape: int) -> Tensor:
    return torch.full(shape or like.shape, torch.nan, dtype=like.dtype, device=like.device)


def plain_norm(name: str, device: str, tokens: int, hidden: int) -> Sample:
    x, weight = randn(device, tokens, hidden), randn(device, hidden, seed=1)
    out = unwritten(x)
    return Sample(getattr(sgl_kernel, name), (x, weight), {"out": out}, (out,))


def fused_norm(name: str, device: str, tokens: int, hidden: int) -> Sample:
    x, residual = randn(device, tokens, hidden), randn(device, tokens, hidden, seed=1)
    weight = randn(device, hidden, seed=2)
    return Sample(getattr(sgl_kernel, name), (x, residual, weight), {}, (x, residual))


def activation(name: str, device: str, dtype: torch.dtype) -> Sample:
    x = randn(device, 17, 2048, dtype=dtype)
    out = unwritten(x, 17, 1024)
    return Sample(getattr(sgl_kernel, name), (x, out), {}, (out,))


def rope(device: str, is_neox: bool, is_fused: bool) -> Sample:
    tokens, slots, q_width, k_width = 17, 40, 8 * 128, 2 * 128
    qkv = randn(device, tokens, q_width + 2 * k_width)
    query, key, value = qkv.split([q_width, k_width, k_width], -1)
    cache = randn(device, 512, 128, dtype=torch.float32, seed=1)
    generator = torch.Generator().manual_seed(2)
    positions = torch.randint(512, (tokens,), generator=generator).to(device)
    slot_of = torch.randperm(slots, generator=generator)[:tokens].to(device)
    arguments = (positions, query, key, 128, cache, is_neox)
    if not is_fused:
        function = sgl_kernel.apply_rope_with_cos_sin_cache_inplace
        return Sample(function, arguments, {}, (qkv,))
    k_buffer = randn(device, slots, k_width, seed=3)
    v_buffer = randn(device, slots, k_width, seed=4)
    return Sample(
        rope_and_store,
        (*arguments, value, k_buffer, v_buffer, slot_of),
        {},
        (qkv, k_buffer, v_buffer),
    )


def rope_and_store(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    head_size: int,
    cache: Tensor,
    is_neox: bool,
    value: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    slot_of: Tensor,
    enable_pdl: bool | None = None,
) -> None:
    """The public function with its dataclass made inside, as a caller's forward makes it."""
    fused = FusedSetKVBufferArg(value, k_buffer, v_buffer, None, None, slot_of)
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(
        positions, query, key, head_size, cache, is_neox, fused, enable_pdl
    )


def marlin_gemm(device: str, type_: ScalarType, m: int, **options: bool) -> Sample:
    weight = random_weight(type_, 320, 1024, 128, torch.bfloat16, device, **options)
    a = randn(device, m, 1024) / 1024  # small sums: what float32 leaves of those that cancel is smaller still
    c = unwritten(a, m, 320)
    return Sample(sgl_kernel.gptq_marlin_gemm, weight.arguments(a, c), {}, (c,))


SAMPLES: dict[str, Callable[[str], Sample]] = {
    "rmsnorm": lambda device: plain_norm("rmsnorm", device, 17, 4096),
    "rmsnorm, heads": lambda device: plain_norm("rmsnorm", device, 99, 128),
    "rmsnorm, odd": lambda device: plain_norm("rmsnorm", device, 17, 501),
    "gemma_rmsnorm": lambda device: plain_norm("gemma_rmsnorm", device, 17, 3072),
    "fused_add_rmsnorm": lambda device: fused_norm("fused_add_rmsnorm", device, 17, 5120),
    "gemma_fused_add_rmsnorm": lambda device: fused_norm("gemma_fused_add_rmsnorm", device, 17, 2048),
    "silu_and_mul": lambda device: activation("silu_and_mul", device, torch.bfloat16),
    "gelu_and_mul": lambda device: activation("gelu_and_mul", device, torch.float16),
    "gelu_tanh_and_mul": lambda device: activation("gelu_tanh_and_mul", device, torch.float32),
    "rope, neox": lambda device: rope(device, is_neox=True, is_fused=False),
    "rope, interleaved": lambda device: rope(device, is_neox=False, is_fused=False),
    "rope, neox, stored": lambda device: rope(device, is_neox=True, is_fused=True),
    "rope, interleaved, stored": lambda device: rope(device, is_neox=False, is_fused=True),
    "gptq_marlin_gemm": lambda device: marlin_gemm(device, scalar_types.uint4, 17),
    "gptq_marlin_gemm, many rows": lambda device: marlin_gemm(device, scalar_types.uint4b8, 200),
    "gptq_marlin_gemm, 8 bit": lambda device: marlin_gemm(device, scalar_types.uint8b128, 5),
    "gptq_marlin_gemm, float8": lambda device: marlin_gemm(device, scalar_types.float8_e4m3fn, 5),
    "gptq_marlin_gemm, act-order": lambda device: marlin_gemm(
        device, scalar_types.uint4b8, 5, is_act_order=True
    ),
}


def norm_op(device: str, is_fused: bool) -> tuple[Any, ...]:
    x, other, weight = randn(device, 5, 64), randn(device, 5, 64, seed=1), randn(device, 64, seed=2)
    return (x, other, weight, 1e-6, False) if is_fused else (other, x, weight, 1e-6, False)


def activation_op(device: str) -> tuple[Any, ...]:
    return randn(device, 2, 5, 32), randn(device, 2, 5, 64, seed=1)


def rope_op(device: str, is_stored: bool) -> tuple[Any, ...]:
    """Out of place: torch's check of the schema wants q and k unchanged."""
    q, k = randn(device, 5, 4, 64), randn(device, 5, 2, 64, seed=1)
    cache = randn(device, 16, 32, dtype=torch.float32, seed=2)
    positions = torch.tensor([0, 3, 15, 3, 7], device=device)
    stored: tuple[Tensor | None, ...] = (None,) * 4
    if is_stored:
        v, k_buffer, v_buffer = (
            randn(device, rows, 2, 64, seed=seed) for rows, seed in ((5, 5), (9, 6), (9, 7))
        )
        stored = (v, k_buffer, v_buffer, torch.tensor([8, 0, 3, 2, 6], device=device))
    q_rope, k_rope = randn(device, 5, 4, 64, seed=3), randn(device, 5, 2, 64, seed=4)
    return (q, k, q_rope, k_rope, cache, positions, False, False, 0, *stored)


def marlin_gemm_op(device: str, type_: ScalarType, **options: bool) -> tuple[Any, ...]:
    weight = random_weight(type_, 64, 256, 128, torch.bfloat16, device, **options)
    return weight.op_arguments(randn(device, 3, 256))


OPS: dict[str, tuple[str, Callable[[str], tuple[Any, ...]]]] = {
    "rmsnorm": ("rmsnorm", lambda device: norm_op(device, is_fused=False)),
    "gemma_rmsnorm": ("gemma_rmsnorm", lambda device: norm_op(device, is_fused=False)),
    "fused_add_rmsnorm": ("fused_add_rmsnorm", lambda device: norm_op(device, is_fused=True)),
    "gemma_fused_add_rmsnorm": ("gemma_fused_add_rmsnorm", lambda device: norm_op(device, is_fused=True)),
    "silu_and_mul": ("silu_and_mul", activation_op),
    "gelu_and_mul": ("gelu_and_mul", activation_op),
    "gelu_tanh_and_mul": ("gelu_tanh_and_mul", activation_op),
    "rope": ("apply_rope_pos_ids_cos_sin_cache", lambda device: rope_op(device, is_stored=False)),
    "rope, stored": ("apply_rope_pos_ids_cos_sin_cache", lambda device: rope_op(device, is_stored=True)),
    "gptq_marlin_gemm": ("gptq_marlin_gemm", lambda device: marlin_gemm_op(device, scalar_types.uint4)),
    "gptq_marlin_gemm, act-order": (
        "gptq_marlin_gemm",
        lambda device: marlin_gemm_op(device, scalar_types.uint8b128, is_act_order=True),
    ),
}
