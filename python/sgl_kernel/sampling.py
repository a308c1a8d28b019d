"""Filtering and sampling of token probabilities, exactly and without sorting on the GPU.

Probabilities and logits are [batch, vocabulary], converted to float32; a threshold is a number or a tensor
[batch]. Filters return float32 [batch, vocabulary], samplers int32 [batch]. With above(x) the entries of x's
row that are larger than x, so that ties are kept or removed together:

* top-k keeps x if above(x) has fewer than k entries; k of at least the vocabulary keeps all,
* top-p keeps x if the sum of above(x) is less than p; p of at least 1 keeps all,
* min-p keeps x if it is at least min_p times the row's maximum.

The largest entry is always kept: k below 1 acts as 1. NaN and negative probabilities count as 0. A sampler
draws one token in proportion to its probability; rows need not add up to 1; of a row without a positive entry
it returns token 0. With ``indices``, output i is drawn from row ``indices[i]`` with the thresholds of that
row; a row that does not exist counts as row 0. As upstream, the number of outputs is ``probs.size(0)``.
With ``check_nan`` a NaN in the input is a ValueError; looking for it waits for the device.

Equal states of the generator, probabilities and thresholds give equal tokens, on every device. A draw takes
the Philox seed and offset of ``generator`` (default: the device's own) and advances the offset; a CPU
generator gives a seed instead. While a CUDA graph is captured the state cannot be read: the draw is that of
seed 0 and offset 0, and so is each replay. ``deterministic`` is accepted; results always are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgl_kernel import _sampling_cpu as cpu
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

__all__ = [
    "min_p_sampling_from_probs",
    "top_k_mask_logits",
    "top_k_renorm_prob",
    "top_k_renorm_probs",
    "top_k_top_p_sampling_from_logits",
    "top_k_top_p_sampling_from_probs",
    "top_p_renorm_prob",
    "top_p_renorm_probs",
    "top_p_sampling_from_probs",
]


def top_k_renorm_probs(probs: Tensor, top_k: Tensor | int) -> Tensor:
    """The ``top_k`` largest probabilities of each row, renormalized, the others 0."""
    probs = probs.float()
    out = torch.empty_like(probs)
    _top_k_renorm_probs(probs, out, *_split(top_k, torch.int32, 0))
    return out


top_k_renorm_prob = top_k_renorm_probs


def top_p_renorm_probs(probs: Tensor, top_p: Tensor | float) -> Tensor:
    """The smallest set of largest probabilities that reaches ``top_p``, renormalized, the others 0."""
    probs = probs.float()
    out = torch.empty_like(probs)
    _top_p_renorm_probs(probs, out, *_split(top_p, torch.float32, 0.0))
    return out


top_p_renorm_prob = top_p_renorm_probs


def top_p_sampling_from_probs(
    probs: Tensor,
    top_p: Tensor | float,
    indices: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> Tensor:
    """One token per row, drawn from the smallest set of largest probabilities that reaches ``top_p``."""
    probs, out, rows = _sampler_arguments(probs, indices, check_nan)
    state = _draw_state(generator, probs.device)
    _top_p_sampling(probs, out, rows, *_split(top_p, torch.float32, 0.0), deterministic, *state)
    return out


def top_k_top_p_sampling_from_probs(
    probs: Tensor,
    top_k: Tensor | int,
    top_p: Tensor | float,
    indices: Tensor | None = None,
    filter_apply_order: str = "top_k_first",
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> Tensor:
    """One token per row, drawn from what both filters keep.

    ``filter_apply_order``: "joint" applies both to ``probs``; "top_k_first" applies top-p to what top-k keeps
    once it is renormalized. Raises ValueError for any other.
    """
    if filter_apply_order == "top_k_first":
        _check_nan(probs, check_nan)
        renormalized = top_k_renorm_probs(probs, top_k)
        return top_p_sampling_from_probs(renormalized, top_p, indices, deterministic, generator)
    _check_joint(filter_apply_order)
    probs, out, rows = _sampler_arguments(probs, indices, check_nan)
    state = _draw_state(generator, probs.device)
    top_k_tensor, top_k_value = _split(top_k, torch.int32, 0)
    _top_k_top_p_sampling(
        probs,
        out,
        rows,
        top_k_tensor,
        float(top_k_value),
        *_split(top_p, torch.float32, 0.0),
        deterministic,
        *state,
    )
    return out


def min_p_sampling_from_probs(
    probs: Tensor,
    min_p: Tensor | float,
    indices: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> Tensor:
    """One token per row, drawn from the probabilities of at least ``min_p`` times the largest."""
    probs, out, rows = _sampler_arguments(probs, indices, check_nan)
    state = _draw_state(generator, probs.device)
    _min_p_sampling(probs, out, rows, *_split(min_p, torch.float32, 0.0), deterministic, *state)
    return out


def top_k_mask_logits(logits: Tensor, top_k: Tensor | int) -> Tensor:
    """The ``top_k`` largest logits of each row, the others (and NaN, where any is) minus infinity."""
    logits = logits.float()
    out = torch.empty_like(logits)
    _top_k_mask_logits(logits, out, *_split(top_k, torch.int32, 0))
    return out


def top_k_top_p_sampling_from_logits(
    logits: Tensor,
    top_k: Tensor | int,
    top_p: Tensor | float,
    indices: Tensor | None = None,
    filter_apply_order: str = "top_k_first",
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> Tensor:
    """``top_k_top_p_sampling_from_probs`` of the softmax of ``logits``.

    With "top_k_first" the logits are masked before the softmax.
    """
    if filter_apply_order == "top_k_first":
        probs = top_k_mask_logits(logits, top_k).softmax(-1)
        return top_p_sampling_from_probs(probs, top_p, indices, deterministic, generator, check_nan)
    _check_joint(filter_apply_order)
    return top_k_top_p_sampling_from_probs(
        logits.float().softmax(-1), top_k, top_p, indices, "joint", deterministic, generator, check_nan
    )


_top_k_renorm_probs = ops.top_k_renorm_probs.default
_top_p_renorm_probs = ops.top_p_renorm_probs.default
_top_k_mask_logits = ops.top_k_mask_logits.default
_top_p_sampling = ops.top_p_sampling_from_probs.default
_top_k_top_p_sampling = ops.top_k_top_p_sampling_from_probs.default
_min_p_sampling = ops.min_p_sampling_from_probs.default


def _check_joint(order: str) -> None:
    if order != "joint":
        raise ValueError(f"filter_apply_order: expected 'top_k_first' or 'joint', got {order!r}")


def _split(value: Any, dtype: torch.dtype, unused: Any) -> tuple[Tensor | None, Any]:
    """A threshold as the operators take it: a tensor or a number."""
    if isinstance(value, Tensor):
        return value.to(dtype).contiguous(), unused
    return None, value


def _check_nan(probs: Tensor, is_wanted: bool) -> None:
    if is_wanted and bool(probs.isnan().any()):  # waits for the device
        raise ValueError("Input probs contains NaN.")


def _sampler_arguments(
    probs: Tensor, indices: Tensor | None, check_nan: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    _check_nan(probs, check_nan)
    probs = probs.float()
    rows = None if indices is None else indices.to(torch.int32).contiguous()
    return probs, torch.empty(probs.size(0), dtype=torch.int32, device=probs.device), rows


_PHILOX_STEP = 4  # an offset counts the 32-bit words drawn; a block of Philox has four


def _draw_state(generator: torch.Generator | None, device: torch.device) -> tuple[int, int]:
    """A Philox seed and offset; the generator is advanced past them."""
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return 0, 0
        if generator is None:
            torch.cuda.init()
            index = torch.cuda.current_device() if device.index is None else device.index
            generator = torch.cuda.default_generators[index]
    if generator is None or generator.device.type != "cuda":
        return int(torch.randint(1 << 62, (), generator=generator)), 0
    offset = generator.get_offset()
    generator.set_offset(offset + _PHILOX_STEP)
    seed = generator.initial_seed()
    return seed - (1 << 64) if seed >= 1 << 63 else seed, offset


def _check_vector(
    op: str, name: str, tensor: Tensor | None, probs: Tensor, size: int, reason: str, dtype: torch.dtype
) -> None:
    if tensor is None:
        return
    a = Argument(op, name, tensor)
    check_dim(a, 1, "[batch]")
    check_size(a, 0, size, reason)
    check_dtype(a, dtype, "for this argument")
    check_device(a, probs.device, "device of the input")
    check_last_stride(a)


def _check_input(op: str, name: str, tensor: Tensor) -> None:
    a = Argument(op, name, tensor)
    check_dim(a, 2, "[batch, vocabulary]")
    check_dtype(a, torch.float32, "for this argument")
    check_last_stride(a)


def _check_filter(
    op: str,
    input_name: str,
    probs: Tensor,
    output: Tensor,
    limit_name: str,
    limit: Tensor | None,
    dtype: torch.dtype,
) -> None:
    _check_input(op, input_name, probs)
    a = Argument(op, "output", output)
    check_dim(a, 2, "[batch, vocabulary]")
    check_size(a, 0, probs.size(0), "rows of the input")
    check_size(a, 1, probs.size(1), "size of the input's rows")
    check_dtype(a, torch.float32, "for this argument")
    check_device(a, probs.device, "device of the input")
    check_last_stride(a)
    _check_vector(op, limit_name, limit, probs, probs.size(0), "rows of the input", dtype)


def _check_sampler(
    op: str,
    probs: Tensor,
    output: Tensor,
    indices: Tensor | None,
    top_k: Tensor | None,
    limit_name: str,
    limit: Tensor | None,
) -> None:
    _check_input(op, "probs", probs)
    rows = probs.size(0)
    a = Argument(op, "output", output)
    check_dim(a, 1, "[batch]")
    check_dtype(a, torch.int32, "for this argument")
    check_device(a, probs.device, "device of the input")
    check_last_stride(a)
    if indices is None:
        check_size(a, 0, rows, "rows of the input")
    if probs.size(1) == 0:
        fail(op, "probs.size(1)", "at least 1", 0)
    if rows == 0 and output.size(0) > 0:
        fail(op, "probs.size(0)", "at least 1", 0)
    _check_vector(op, "maybe_indices", indices, probs, output.size(0), "output.size(0)", torch.int32)
    _check_vector(op, "maybe_top_k_arr", top_k, probs, rows, "rows of the input", torch.int32)
    _check_vector(op, limit_name, limit, probs, rows, "rows of the input", torch.float32)


def _per_row(probs: Tensor, tensor: Tensor | None, value: float, dtype: torch.dtype) -> Tensor:
    if tensor is not None:
        return tensor
    if dtype == torch.int32:
        value = int(min(max(value, 1), 2**31 - 1)) if value == value else 1
    return torch.full((probs.size(0),), value, dtype=dtype)


def _select_rows(indices: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    if indices is None:
        return tensors
    rows = tensors[0].size(0)
    valid = torch.where((indices >= 0) & (indices < rows), indices, 0).long()
    return tuple(tensor[valid] for tensor in tensors)


@fakes("top_k_renorm_probs")
def _top_k_renorm_fake(
    probs: Tensor, renorm_probs: Tensor, maybe_top_k_arr: Tensor | None, top_k_val: int
) -> None:
    _check_filter(
        "top_k_renorm_probs", "probs", probs, renorm_probs, "maybe_top_k_arr", maybe_top_k_arr, torch.int32
    )


@implements("top_k_renorm_probs")
def _top_k_renorm_cpu(
    probs: Tensor, renorm_probs: Tensor, maybe_top_k_arr: Tensor | None, top_k_val: int
) -> None:
    _top_k_renorm_fake(probs, renorm_probs, maybe_top_k_arr, top_k_val)
    if probs.numel():
        top_k = _per_row(probs, maybe_top_k_arr, top_k_val, torch.int32)
        renorm_probs.copy_(cpu.renormalize(probs, top_k, None))


@fakes("top_p_renorm_probs")
def _top_p_renorm_fake(
    probs: Tensor, renorm_probs: Tensor, maybe_top_p_arr: Tensor | None, top_p_val: float
) -> None:
    _check_filter(
        "top_p_renorm_probs", "probs", probs, renorm_probs, "maybe_top_p_arr", maybe_top_p_arr, torch.float32
    )


@implements("top_p_renorm_probs")
def _top_p_renorm_cpu(
    probs: Tensor, renorm_probs: Tensor, maybe_top_p_arr: Tensor | None, top_p_val: float
) -> None:
    _top_p_renorm_fake(probs, renorm_probs, maybe_top_p_arr, top_p_val)
    if probs.numel():
        top_p = _per_row(probs, maybe_top_p_arr, top_p_val, torch.float32)
        renorm_probs.copy_(cpu.renormalize(probs, None, top_p))


@fakes("top_k_mask_logits")
def _top_k_mask_fake(
    logits: Tensor, mask_logits: Tensor, maybe_top_k_arr: Tensor | None, top_k_val: int
) -> None:
    _check_filter(
        "top_k_mask_logits", "logits", logits, mask_logits, "maybe_top_k_arr", maybe_top_k_arr, torch.int32
    )


@implements("top_k_mask_logits")
def _top_k_mask_cpu(
    logits: Tensor, mask_logits: Tensor, maybe_top_k_arr: Tensor | None, top_k_val: int
) -> None:
    _top_k_mask_fake(logits, mask_logits, maybe_top_k_arr, top_k_val)
    if logits.numel():
        mask_logits.copy_(cpu.mask(logits, _per_row(logits, maybe_top_k_arr, top_k_val, torch.int32)))


@fakes("top_p_sampling_from_probs")
def _top_p_sampling_fake(
    probs: Tensor,
    output: Tensor,
    maybe_indices: Tensor | None,
    maybe_top_p_arr: Tensor | None,
    top_p_val: float,
    deterministic: bool,
    philox_seed: int,
    philox_offset: int,
) -> None:
    op = "top_p_sampling_from_probs"
    _check_sampler(op, probs, output, maybe_indices, None, "maybe_top_p_arr", maybe_top_p_arr)


@implements("top_p_sampling_from_probs")
def _top_p_sampling_cpu(
    probs: Tensor,
    output: Tensor,
    maybe_indices: Tensor | None,
    maybe_top_p_arr: Tensor | None,
    top_p_val: float,
    deterministic: bool,
    philox_seed: int,
    philox_offset: int,
) -> None:
    op = "top_p_sampling_from_probs"
    _check_sampler(op, probs, output, maybe_indices, None, "maybe_top_p_arr", maybe_top_p_arr)
    if output.numel() == 0:
        return
    top_p = _per_row(probs, maybe_top_p_arr, top_p_val, torch.float32)
    probs, top_p = _select_rows(maybe_indices, cpu.clean(probs), top_p)
    least, is_cut = cpu.threshold(probs, None, top_p)
    output.copy_(cpu.draw(probs, torch.where(is_cut, least, 0.0), philox_seed, philox_offset))


@fakes("top_k_top_p_sampling_from_probs")
def _top_k_top_p_sampling_fake(
    probs: Tensor,
    output: Tensor,
    maybe_indices: Tensor | None,
    maybe_top_k_arr: Tensor | None,
    top_k_val: float,
    maybe_top_p_arr: Tensor | None,
    top_p_val: float,
    deterministic: bool,
    philox_seed: int,
    philox_offset: int,
) -> None:
    op = "top_k_top_p_sampling_from_probs"
    _check_sampler(op, probs, output, maybe_indices, maybe_top_k_arr, "maybe_top_p_arr", maybe_top_p_arr)


@implements("top_k_top_p_sampling_from_probs")
def _top_k_top_p_sampling_cpu(
    probs: Tensor,
    output: Tensor,
    maybe_indices: Tensor | None,
    maybe_top_k_arr: Tensor | None,
    top_k_val: float,
    maybe_top_p_arr: Tensor | None,
    top_p_val: float,
    deterministic: bool,
    philox_seed: int,
    philox_offset: int,
) -> None:
    op = "top_k_top_p_sampling_from_probs"
    _check_sampler(op, probs, output, maybe_indices, maybe_top_k_arr, "maybe_top_p_arr", maybe_top_p_arr)
    if output.numel() == 0:
        return
    top_k = _per_row(probs, maybe_top_k_arr, top_k_val, torch.int32)
    top_p = _per_row(probs, maybe_top_p_arr, top_p_val, torch.float32)
    probs, top_k, top_p = _select_rows(maybe_indices, cpu.clean(probs), top_k, top_p)
    least, is_cut = cpu.threshold(probs, top_k, top_p)
    output.copy_(cpu.draw(probs, torch.where(is_cut, least, 0.0), philox_seed, philox_offset))


@fakes("min_p_sampling_from_probs")
def _min_p_sampling_fake(
    probs: Tensor,
    output: Tensor,
    maybe_indices: Tensor | None,
    maybe_min_p_arr: Tensor | None,
    min_p_val: float,
    deterministic: bool,
    philox_seed: int,
    philox_offset: int,
) -> None:
    op = "min_p_sampling_from_probs"
    _check_sampler(op, probs, output, maybe_indices, None, "maybe_min_p_arr", maybe_min_p_arr)


@implements("min_p_sampling_from_probs")
def _min_p_sampling_cpu(
    probs: Tensor,
    output: Tensor,
    maybe_indices: Tensor | None,
    maybe_min_p_arr: Tensor | None,
    min_p_val: float,
    deterministic: bool,
    philox_seed: int,
    philox_offset: int,
) -> None:
    op = "min_p_sampling_from_probs"
    _check_sampler(op, probs, output, maybe_indices, None, "maybe_min_p_arr", maybe_min_p_arr)
    if output.numel() == 0:
        return
    min_p = _per_row(probs, maybe_min_p_arr, min_p_val, torch.float32)
    probs, min_p = _select_rows(maybe_indices, cpu.clean(probs), min_p)
    output.copy_(cpu.draw(probs, cpu.min_p_threshold(probs, min_p), philox_seed, philox_offset))
