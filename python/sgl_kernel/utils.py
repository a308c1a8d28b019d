"""Helpers of the API: the current stream, scratch buffers, scalar-or-tensor arguments, launch hints."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

__all__ = ["get_cuda_stream", "is_arch_support_pdl"]

_cache_buf: dict[tuple[str, torch.device], Tensor] = {}


def get_cuda_stream() -> int:
    """The handle (``cudaStream_t``) of torch's current stream on the current device."""
    return int(torch.cuda.current_stream().cuda_stream)


def _get_cache_buf(name: str, bytes: int, device: torch.device) -> Tensor:
    """A uint8 buffer, allocated at the first call for a name and device, and never resized."""
    key = (name, device)
    buffer = _cache_buf.get(key)
    if buffer is None:
        buffer = _cache_buf[key] = torch.empty(bytes, dtype=torch.uint8, device=device)
    return buffer


def _to_tensor_scalar_tuple(x: Any) -> tuple[Tensor | None, Any]:
    """``(x, 0)`` for a tensor, ``(None, x)`` for a scalar."""
    return (x, 0) if isinstance(x, Tensor) else (None, x)


@functools.lru_cache(maxsize=1)
def is_arch_support_pdl() -> bool:
    """Whether the current GPU knows programmatic dependent launch: compute capability 9.0 or higher."""
    return torch.cuda.is_available() and bool(torch.cuda.get_device_properties().major >= 9)


def default_pdl() -> bool:
    """The launch hint for ``enable_pdl=None``."""
    if torch.compiler.is_compiling():
        # Dynamo warns about caches, and folds the calls inside to a constant of the graph.
        return is_arch_support_pdl.__wrapped__()
    return is_arch_support_pdl()
