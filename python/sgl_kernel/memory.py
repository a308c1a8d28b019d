"""Stores into the key and value caches."""

from __future__ import annotations

from torch import Tensor

from sgl_kernel.kv_store import store_kv_cache

__all__ = ["set_kv_buffer_kernel"]


def set_kv_buffer_kernel(
    k_cache: Tensor, v_cache: Tensor, loc: Tensor, k: Tensor, v: Tensor, fallback: bool = False
) -> None:
    """``k_cache[loc] = k`` and ``v_cache[loc] = v``, in place.

    The operator ``store_kv_cache`` does it; with ``fallback``, or where it refuses the arguments (which takes
    RuntimeError), torch's indexing. The operator skips rows outside of the caches.
    """
    if not fallback:
        try:
            return store_kv_cache(k_cache, v_cache, loc, k, v)
        except RuntimeError:
            pass
    k_cache[loc] = k
    v_cache[loc] = v
    return None
