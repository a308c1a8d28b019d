"""C++ names in readable form, by the demangler of the C++ runtime that is on every machine with torch.

``__cxa_demangle`` (Itanium C++ ABI, section 3.4) knows every mangling its compiler can make. Of the two
pure Python demanglers, one raises on a third of torch's symbols and drops references on others, the other
is a wrapper of the same function.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

__all__ = ["demangle", "qualified_name"]

_RUNTIMES = ("libstdc++.so.6", "libc++abi.so.1", "libc++.1.dylib")


@functools.lru_cache(maxsize=65536)
def demangle(symbol: str) -> str:
    """Return the declaration that ``symbol`` stands for, or ``symbol`` itself if it is no C++ name."""
    function = _function()
    if function is None or not symbol.startswith("_Z"):
        return symbol
    status = ctypes.c_int()
    # A malloc'd buffer, ours to free.
    pointer = function(symbol.encode(), None, None, ctypes.byref(status))
    if not pointer:
        return symbol
    try:
        return ctypes.string_at(pointer).decode("utf-8", "backslashreplace")
    finally:
        _free()(pointer)


def qualified_name(declaration: str) -> str:
    """Return a demangled declaration without return type, parameters and qualifiers.

    >>> qualified_name("c10::cuda::SetDevice(signed char, bool)")
    'c10::cuda::SetDevice'
    >>> qualified_name("std::vector<int> at::f<int>(int) const")
    'at::f<int>'
    """
    text = declaration.replace("(anonymous namespace)", "{anonymous}")
    depth, start, end = 0, 0, len(text)
    position = 0
    while position < len(text):
        if text.startswith("operator", position) and depth == 0:
            position += _operator_length(text[position:])
            continue
        char = text[position]
        if char in "<[":
            depth += 1
        elif char in ">]":
            depth -= 1
        elif char == "(" and depth == 0:
            end = position
            break
        elif char == " " and depth == 0:
            start = position + 1
        position += 1
    return text[start:end].replace("{anonymous}", "(anonymous namespace)")


def _operator_length(text: str) -> int:
    """Return how much of ``operator...`` belongs to the name: up to the parameters."""
    if text.startswith("operator()"):
        return len("operator()")
    end = text.find("(")
    return len(text) if end < 0 else end


@functools.cache
def _function() -> Callable[..., int | None] | None:
    for name in _RUNTIMES:
        try:
            function = ctypes.CDLL(name).__cxa_demangle
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_void_p
        function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        return function
    return None


@functools.cache
def _free() -> Callable[[int], None]:
    free = ctypes.CDLL(None).free
    free.restype, free.argtypes = None, [ctypes.c_void_p]
    return free
