"""What consumers of this API level expect of torch and newer releases no longer have."""

from __future__ import annotations

from typing import Any

import torch


def supply_amx_query() -> None:
    """Defines ``torch._C._cpu._is_amx_tile_supported`` where torch (2.11 and later) dropped it.

    SGLang 0.5 asks for it while it is being imported, after ``sgl_kernel``; the answer only selects CPU
    kernels that this package does not have, hence False.
    """
    cpu: Any = torch._C._cpu
    if not hasattr(cpu, "_is_amx_tile_supported"):
        cpu._is_amx_tile_supported = lambda: False
