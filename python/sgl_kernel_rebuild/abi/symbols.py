"""Which undefined symbols of a shared object must come from torch, and which releases have them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ._elffile import SharedObject, Symbol
from .atlas import Atlas

__all__ = ["Provider", "classify", "is_python", "is_torch_library", "torch_symbols"]

# An entity of torch: the outermost namespace of the name itself, whatever its parameters
# (Itanium C++ ABI, 5.1: _Z, then T? for tables and GV for guards, then N and qualifiers if nested).
_TORCH_ENTITY = re.compile(r"_Z(?:T[VTISHW]|GV|GR)?N[rVK]*[RO]?(?:2at|3c10|5torch|6caffe2|4c10d)")
_TORCH_WORD = re.compile(r"(?<!\d)(?:2at|3c10|5torch|6caffe2)")
_TORCH_C = re.compile(r"(?:aoti_torch_|torch_|AOTI|THP)")
# std:: and the ABI support library: substitution St, or Sa, Sb, Ss, Si, So, Sd for its well-known names.
_STD_ENTITY = re.compile(r"_Z(?:T[VTISH]|GV|GTt|Th\d+_|Tv0_n\d+_)?(?:N[rVK]*[RO]?)?S[tabsiod]")
_RUNTIME = re.compile(r"_Z(?:n[aw]|d[al])|__cxa_|__gxx_|_Unwind_|_ITM_|__gmon_start__|_ZTI[a-z]|_ZTIP")
_PYTHON = re.compile(r"_?Py[A-Z_]")
_CUDA = re.compile(
    r"cu[A-Z]|cuda|__cuda|cublas|cudnn|cusparse|cusolver|cufft|curand|nccl|nvrtc|nvJitLink|nvml"
)

_SYSTEM_SONAME = re.compile(
    r"(?:lib(?:c|m|dl|rt|pthread|util|resolv|stdc\+\+|gcc_s|gomp|atomic|cuda|cudart|cublas|cublasLt|cudnn\w*|cusparse"
    r"|cusolver|cufft|curand|nccl|nvrtc|nvJitLink|nvToolsExt|nvidia-ml|python[\d.]*)|ld-linux[\w-]*)(?:[-.].*)?\.so"
)
_TORCH_SONAME = re.compile(r"lib(?:torch\w*|c10\w*|shm|caffe2\w*)\.so")


@dataclass(frozen=True)
class Provider:
    """Who must offer an undefined symbol.

    ``kind`` is ``torch``, ``system``, ``python``, ``cuda``, ``sibling`` (the same wheel) or ``other``.
    """

    symbol: Symbol
    kind: str


def torch_symbols(
    shared_object: SharedObject,
    atlas: Atlas,
    siblings: Collection[str] = (),
    *,
    neighbours: Collection[str] = (),
    has_needed: bool = True,
) -> tuple[str, ...]:
    """Return the mangled names that ``shared_object`` cannot load without and that torch must export.

    ``siblings`` holds the names that other shared objects of the same wheel define, ``neighbours`` what these
    objects are called. Weak references count
    for nothing: the loader leaves them null. ``has_needed`` is false for a bare list of symbols, which says
    nothing about the libraries that it needs.
    """
    found = classify(shared_object, atlas, siblings, neighbours=neighbours, has_needed=has_needed)
    return tuple(provider.symbol.name for provider in found if provider.kind == "torch")


def classify(
    shared_object: SharedObject,
    atlas: Atlas,
    siblings: Collection[str] = (),
    *,
    neighbours: Collection[str] = (),
    has_needed: bool = True,
) -> tuple[Provider, ...]:
    """Return every strong undefined symbol with the kind of its provider, sorted by name."""
    # Of a neighbour it is known what it defines: a symbol that none of them has can still be torch's.
    is_closed = has_needed and not set(_strangers(shared_object.needed)) - set(neighbours)
    return tuple(
        Provider(symbol, _kind(symbol, atlas, siblings, is_closed))
        for symbol in sorted(shared_object.undefined)
        if not symbol.is_weak
    )


def is_python(symbol: Symbol) -> bool:
    """Tell whether ``symbol`` is of Python's C API."""
    return not symbol.version and _PYTHON.match(symbol.name) is not None


def is_torch_library(name: str) -> bool:
    """Tell whether a file or a soname is a library of torch itself."""
    return _TORCH_SONAME.fullmatch(name.rpartition("/")[2]) is not None


def _kind(symbol: Symbol, atlas: Atlas, siblings: Collection[str], is_closed: bool) -> str:
    name = symbol.name
    if name in siblings:
        return "sibling"
    if symbol.version:  # torch's libraries version nothing; libc, libstdc++ and the CUDA libraries do
        return "cuda" if symbol.version.startswith("lib") else "system"
    if _TORCH_ENTITY.match(name) or _TORCH_C.match(name):
        return "torch"
    if _PYTHON.match(name):
        return "python"
    if _CUDA.match(name):
        return "cuda"
    if _RUNTIME.match(name):
        return "system"
    if _STD_ENTITY.match(name):  # torch exports instances of std too; one is torch's if one of its types is
        return "torch" if _TORCH_WORD.search(name) else "system"
    # What torch links statically (BLAS, fmt, protobuf) and exports is torch's only if no other library that
    # the object needs can have it.
    return "torch" if is_closed and name in atlas else "other"


def _strangers(needed: Iterable[str]) -> list[str]:
    """Return the needed libraries that are neither the system's, nor CUDA's, nor torch's."""
    return [name for name in needed if not (_SYSTEM_SONAME.match(name) or _TORCH_SONAME.match(name))]
