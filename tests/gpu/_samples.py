"""One small call of every public function, and of every torch op, for tests that treat them all alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sgl_kernel
import torch
from sgl_kernel import FusedSetKVBufferArg
from sgl_kernel.kv_store import store_kv_cache
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


def merge(name: str, device: str, dtype: torch.dtype) -> Sample:
    v_a, v_b = randn(device, 17, 8, 128, dtype=dtype), randn(device, 17, 8, 128, dtype=dtype, seed=1)
    s_a, s_b = (randn(device, 17, 8, dtype=torch.float32, seed=seed) for seed in (2, 3))
    v, s = unwritten(v_a), unwritten(s_a)
    return Sample(getattr(sgl_kernel, name), (v_a, s_a, v_b, s_b, v, s), {}, (v, s))


def randint(device: str, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(5)).to(dtype).to(device)


def bitmask(device: str, is_indexed: bool) -> Sample:
    logits = randn(device, 5, 1000, dtype=torch.float32)
    mask = randint(device, -(2**31), 2**31, 5, 32)
    indices = torch.tensor([3, 0], device=device) if is_indexed else None
    function = sgl_kernel.grammar.apply_token_bitmask_inplace_cuda
    return Sample(function, (logits, mask, indices), {}, (logits,))


def store(device: str) -> Sample:
    k, v = randn(device, 17, 2, 128), randn(device, 17, 2, 128, seed=1)
    k_cache, v_cache = randn(device, 40, 2, 128, seed=2), randn(device, 40, 2, 128, seed=3)
    loc = torch.arange(39, 5, -2, device=device)
    return Sample(store_kv_cache, (k_cache, v_cache, loc, k, v), {}, (k_cache, v_cache))


def downcast(device: str) -> Sample:
    k, v = randn(device, 17, 2, 128), randn(device, 17, 2, 128, seed=1)
    k_out, v_out = (torch.zeros(40, 2, 128, dtype=torch.uint8, device=device) for _ in range(2))
    scale, loc = torch.full((1,), 0.37, device=device), torch.arange(17, device=device)
    return Sample(sgl_kernel.downcast_fp8, (k, v, k_out, v_out, scale, scale, loc, 2, 3), {}, (k_out, v_out))


def softmax_gate(device: str, experts: int, topk: int) -> Sample:
    logits = randn(device, 17, experts, dtype=torch.float32)
    weights = unwritten(logits, 17, topk)
    ids = torch.full((17, topk), -1, dtype=torch.int32, device=device)
    return Sample(sgl_kernel.topk_softmax, (weights, ids, logits, True), {}, (weights, ids))


def group_gate(device: str) -> Sample:
    logits, bias = (
        randn(device, 17, 256, dtype=torch.float32),
        randn(device, 256, dtype=torch.float32, seed=1),
    )
    weights = unwritten(logits, 17, 8)
    ids = torch.full((17, 8), -1, dtype=torch.int32, device=device)
    return Sample(group_gate_into, (weights, ids, logits, bias), {}, (weights, ids))


def group_gate_into(weights: Tensor, ids: Tensor, logits: Tensor, bias: Tensor) -> None:
    """The public function returns new tensors; the tests of the runtime look at given ones."""
    results = sgl_kernel.moe_fused_gate(logits, bias, 8, 4, 8, 1, 2.5)
    weights.copy_(results[0])
    ids.copy_(results[1])


def align(device: str, tokens: int) -> Sample:
    ids = randint(device, -1, 128, tokens, 8)
    runs, labels, total, scratch = (
        torch.full((size,), -7, dtype=torch.int32, device=device)
        for size in (ids.numel() + 129 * 63, ids.numel() // 64 + 130, 1, 130)
    )
    arguments = (ids, 129, 64, runs, labels, total, scratch, True)
    return Sample(sgl_kernel.moe_align_block_size, arguments, {}, (runs, labels, total))


def integers(device: str, *shape: int, seed: int = 0, low: int = -(2**31), high: int = 2**31) -> Tensor:
    """int32, by default of any bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).int().to(device)


def order(device: str, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(9)).int().to(device)


def into(out: Tensor, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> None:
    """A function that returns a new tensor, as one that writes ``out``."""
    out.copy_(function(*args, **kwargs))


def repack(name: str, device: str, bits: int, is_permuted: bool = False) -> Sample:
    size_k, size_n = 96, 320
    shape = (size_k * bits // 32, size_n) if name == "gptq_marlin_repack" else (size_k, size_n * bits // 32)
    leading = (3,) if name == "awq_marlin_moe_repack" else ()
    perms = () if name == "awq_marlin_repack" else (order(device, size_k if is_permuted else 0),)
    out = integers(device, *leading, size_k // 16, size_n * bits // 2, seed=1)
    weights = integers(device, *leading, *shape)
    return Sample(into, (out, getattr(sgl_kernel, name), weights, *perms, size_k, size_n, bits), {}, (out,))


def awq(device: str, group_size: int, dtype: torch.dtype) -> Sample:
    rows, words = 4 * group_size, 130
    scales = randn(device, 4, 8 * words, dtype=dtype)
    out = unwritten(scales, rows, 8 * words)
    arguments = (integers(device, rows, words), scales, integers(device, 4, words, seed=1))
    return Sample(into, (out, sgl_kernel.awq_dequantize, *arguments), {}, (out,))


def gptq(device: str, tokens: int, bits: int, is_indexed: bool = False) -> Sample:
    rows, columns, groups = 1024, 160, 8
    scales = torch.full((groups, columns), 2.0**-10, dtype=torch.float16, device=device)
    weights = integers(device, rows * bits // 32, columns)
    zeros = integers(device, groups, columns * bits // 32, seed=1)
    g_idx = integers(device, rows if is_indexed else 0, seed=2, low=0, high=groups)
    # Integers, of sums that fp32 and fp16 hold exactly: the result depends on no order of summation.
    a = integers(device, tokens, rows, seed=3, low=0, high=2).half() / 64
    out = unwritten(scales, tokens, columns)
    arguments = (a, weights, zeros, scales, g_idx, False, bits)
    return Sample(into, (out, sgl_kernel.gptq_gemm, *arguments), {}, (out,))


def gptq_shuffle(device: str, bits: int) -> Sample:
    weights = integers(device, 96 * bits // 32, 96)
    return Sample(sgl_kernel.gptq_shuffle, (weights, order(device, 96), bits), {}, (weights,))


def probabilities(device: str, rows: int, vocabulary: int) -> Tensor:
    return randn("cpu", rows, vocabulary, dtype=torch.float32).mul(3).softmax(-1).to(device)


def filtered(name: str, device: str, rows: int, vocabulary: int, limit: float) -> Sample:
    """The public function, its result kept in a tensor that the test can look at."""
    probs = probabilities(device, rows, vocabulary)
    out = unwritten(probs)
    function = getattr(sgl_kernel, name)
    return Sample(lambda probs, limit: out.copy_(function(probs, limit)), (probs, limit), {}, (out,))


def drawn(name: str, device: str, rows: int, vocabulary: int) -> Sample:
    """The operator below the public function, which would take the seed from the generator."""
    arguments = sampler_op(name, device, rows, vocabulary)
    return Sample(getattr(torch.ops.sgl_kernel, name), arguments, {}, (arguments[1],))


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
    "merge_state": lambda device: merge("merge_state", device, torch.bfloat16),
    "merge_state_v2": lambda device: merge("merge_state_v2", device, torch.float16),
    "bitmask": lambda device: bitmask(device, is_indexed=False),
    "bitmask, some rows": lambda device: bitmask(device, is_indexed=True),
    "store_kv_cache": store,
    "downcast_fp8": downcast,
    "topk_softmax": lambda device: softmax_gate(device, 128, 8),
    "topk_softmax, any": lambda device: softmax_gate(device, 700, 40),
    "moe_fused_gate": group_gate,
    "moe_align_block_size": lambda device: align(device, 100),
    "moe_align_block_size, two kernels": lambda device: align(device, 700),
    "awq_marlin_repack": lambda device: repack("awq_marlin_repack", device, 4),
    "awq_marlin_repack, 8 bits": lambda device: repack("awq_marlin_repack", device, 8),
    "awq_marlin_moe_repack": lambda device: repack("awq_marlin_moe_repack", device, 4),
    "gptq_marlin_repack": lambda device: repack("gptq_marlin_repack", device, 4),
    "gptq_marlin_repack, 8 bits": lambda device: repack("gptq_marlin_repack", device, 8),
    "gptq_marlin_repack, permuted": lambda device: repack("gptq_marlin_repack", device, 4, True),
    "awq_dequantize": lambda device: awq(device, 128, torch.float16),
    "awq_dequantize, bf16": lambda device: awq(device, 4, torch.bfloat16),
    "awq_dequantize, odd group": lambda device: awq(device, 7, torch.float16),
    "gptq_gemm, m1": lambda device: gptq(device, 1, 4),
    "gptq_gemm, m3, 3 bits": lambda device: gptq(device, 3, 3),
    "gptq_gemm, m2, indexed": lambda device: gptq(device, 2, 4, True),
    "gptq_gemm, m17": lambda device: gptq(device, 17, 4),
    "gptq_gemm, m17, 2 bits, indexed": lambda device: gptq(device, 17, 2, True),
    "gptq_shuffle": lambda device: gptq_shuffle(device, 4),
    "gptq_shuffle, 3 bits": lambda device: gptq_shuffle(device, 3),
    "top_k_renorm": lambda device: filtered("top_k_renorm_prob", device, 3, 32000, 50),
    "top_p_renorm": lambda device: filtered("top_p_renorm_prob", device, 17, 4099, 0.9),
    "top_k_mask_logits": lambda device: filtered("top_k_mask_logits", device, 5, 1000, 20),
    "top_p_sampling": lambda device: drawn("top_p_sampling_from_probs", device, 17, 32000),
    "top_k_top_p_sampling": lambda device: drawn("top_k_top_p_sampling_from_probs", device, 3, 151936),
    "min_p_sampling": lambda device: drawn("min_p_sampling_from_probs", device, 99, 111),
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


def of_sample(sample: Sample) -> tuple[Any, ...]:
    """The op's own arguments, of a sample that calls it through ``into``."""
    return tuple(sample.args[2:])


def filter_op(name: str, device: str) -> tuple[Any, ...]:
    probs = probabilities(device, 5, 64)
    if name == "top_p_renorm_probs":
        return probs, torch.zeros_like(probs), None, 0.8
    return (
        probs,
        torch.zeros_like(probs),
        torch.tensor([1, 2, 9, 64, 99], dtype=torch.int32, device=device),
        0,
    )


def sampler_op(name: str, device: str, rows: int = 5, vocabulary: int = 64) -> tuple[Any, ...]:
    probs = probabilities(device, rows, vocabulary)
    out = torch.full((rows,), -1, dtype=torch.int32, device=device)
    limit = torch.linspace(0.01, 0.99, rows, device=device)
    top_k = torch.arange(5, 5 + rows, dtype=torch.int32, device=device)
    limits = (top_k, 0.0, limit, 0.0) if "top_k" in name else (limit, 0.0)
    return probs, out, None, *limits, True, 7, 4


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
    "merge_state": ("merge_state", lambda device: merge("merge_state", device, torch.bfloat16).args),
    "merge_state_v2": ("merge_state_v2", lambda device: merge("merge_state_v2", device, torch.float16).args),
    "bitmask": ("apply_token_bitmask_inplace_cuda", lambda device: bitmask(device, is_indexed=True).args),
    "store_kv_cache": ("store_kv_cache", lambda device: store(device).args),
    "downcast_fp8": ("downcast_fp8", lambda device: (*downcast(device).args, 0)),
    "topk_softmax": ("topk_softmax", lambda device: softmax_gate(device, 128, 8).args),
    "moe_fused_gate": (
        "moe_fused_gate",
        lambda device: (*group_gate(device).args[2:], 8, 4, 8, 1, 2.5, False),
    ),
    "moe_align_block_size": ("moe_align_block_size", lambda device: align(device, 700).args),
    "awq_marlin_repack": (
        "awq_marlin_repack",
        lambda device: of_sample(repack("awq_marlin_repack", device, 4)),
    ),
    "awq_marlin_moe_repack": (
        "awq_marlin_moe_repack",
        lambda device: of_sample(repack("awq_marlin_moe_repack", device, 4)),
    ),
    "gptq_marlin_repack": (
        "gptq_marlin_repack",
        lambda device: of_sample(repack("gptq_marlin_repack", device, 8, True)),
    ),
    "awq_dequantize": ("awq_dequantize", lambda device: of_sample(awq(device, 32, torch.bfloat16))),
    "gptq_gemm": ("gptq_gemm", lambda device: of_sample(gptq(device, 5, 4))),
    "gptq_shuffle": ("gptq_shuffle", lambda device: gptq_shuffle(device, 4).args),
    "top_k_renorm_probs": ("top_k_renorm_probs", lambda device: filter_op("top_k_renorm_probs", device)),
    "top_p_renorm_probs": ("top_p_renorm_probs", lambda device: filter_op("top_p_renorm_probs", device)),
    "top_k_mask_logits": ("top_k_mask_logits", lambda device: filter_op("top_k_mask_logits", device)),
    "top_p_sampling_from_probs": (
        "top_p_sampling_from_probs",
        lambda device: sampler_op("top_p_sampling_from_probs", device),
    ),
    "top_k_top_p_sampling_from_probs": (
        "top_k_top_p_sampling_from_probs",
        lambda device: sampler_op("top_k_top_p_sampling_from_probs", device),
    ),
    "min_p_sampling_from_probs": (
        "min_p_sampling_from_probs",
        lambda device: sampler_op("min_p_sampling_from_probs", device),
    ),
    "gptq_marlin_gemm": ("gptq_marlin_gemm", lambda device: marlin_gemm_op(device, scalar_types.uint4)),
    "gptq_marlin_gemm, act-order": (
        "gptq_marlin_gemm",
        lambda device: marlin_gemm_op(device, scalar_types.uint8b128, is_act_order=True),
    ),
}
