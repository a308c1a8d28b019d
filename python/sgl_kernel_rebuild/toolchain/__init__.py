"""Device code: .cu files to machine code, fat binaries and a build record.

Runs at PEP 517 build time, one process per file and architecture, from the source tree: it imports
the standard library, ``cuda.bindings`` (on a cache miss only) and ``platformdirs``, nothing else.
``python -m sgl_kernel_rebuild.toolchain --help`` is what the native build calls.
"""

from __future__ import annotations

from ._cache import Cache, CacheStatus
from ._compile import CompileResult, compile_device
from ._fatbin import Image, pack
from ._model import CompilerIdentity, Kind, Report, Resources
from ._record import build_record

__all__ = [
    "Cache",
    "CacheStatus",
    "CompileResult",
    "CompilerIdentity",
    "Image",
    "Kind",
    "Report",
    "Resources",
    "build_record",
    "compile_device",
    "pack",
]
