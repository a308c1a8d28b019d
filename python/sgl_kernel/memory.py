"""Stores into the key and value caches."""

from __future__ import annotations

from torch import Tensor

__all__ = ["set_kv_buffer_kernel"]


def set_kv_buffer_kernel(
    k_cache: Tensor, v_cache: Tensor, loc: Tensor, k: Tensor, v: Tensor, fallback: bool = False
) -> None:
    """``k_cache[loc] = k`` and ``v_cache[loc] = v``, by torch's indexing.

    ``fallback`` once asked for exactly that; it changes nothing.
    """
    k_cache[loc] = k
    v_cache[loc] = v
