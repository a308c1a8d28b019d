"""The names of the API that have no kernel yet: they import, they are listed, they refuse to be called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# What a caller of SGLang can do instead, per module.
_INSTEAD = {
    "sgl_kernel.allreduce": "start SGLang with --disable-custom-all-reduce and without --enable-mscclpp",
    "sgl_kernel.flash_attn": "start SGLang with --attention-backend triton",
    "sgl_kernel.kvcacheio": "start SGLang without --enable-hierarchical-cache",
    "sgl_kernel.sparse_flash_attn": "choose an attention backend other than dual_chunk_flash_attn",
    "sgl_kernel.speculative": "start SGLang without --speculative-algorithm",
}
_ANOTHER_PATH = "choose a model, a quantization or an option that does not need it"

_names: set[str] = set()


class NotProvidedError(NotImplementedError):
    """A function of the sgl-kernel API was called that this package does not provide yet."""


def not_provided(function: Callable[P, R]) -> Callable[P, R]:
    """Marks a stub, which keeps its signature: it joins ``missing()``, and a call raises NotProvidedError."""
    name = f"{function.__module__}.{function.__qualname__}"
    _names.add(name)

    @functools.wraps(function)
    def refuse(*args: P.args, **kwargs: P.kwargs) -> NoReturn:
        raise NotProvidedError(
            f"{name}: not provided by this package yet (sgl_kernel.missing() lists all such names)\n"
            f"To go on, {_INSTEAD.get(function.__module__, _ANOTHER_PATH)}."
        )

    return refuse


def missing() -> list[str]:
    """The dotted names that are importable but not provided yet, sorted."""
    return sorted(_names)
