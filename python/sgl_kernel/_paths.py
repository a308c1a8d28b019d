"""Which of an op's paths runs, where it has several: its own choice, unless tests or benchmarks force one.

``generic`` is what every GPU from sm_80 to sm_120 runs, ``sm90`` is for sm_90a alone. The environment
variable SGLK_FORCE_PATH, read at import, forces one for the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["NAMES", "current", "force_path"]

NAMES = ("auto", "generic", "sm90")


def _number(name: str) -> int:
    if name not in NAMES:
        raise ValueError(f"path: expected one of {', '.join(NAMES)}, got {name}")
    return NAMES.index(name)


_path = _number(os.environ.get("SGLK_FORCE_PATH", "auto"))


def current() -> int:
    """The number of the path for ops that have several; 0: the op chooses."""
    return _path


@contextmanager
def force_path(name: str) -> Iterator[None]:
    """Force the path ``name`` of :data:`NAMES`; an op that lacks it on the GPU at hand raises RuntimeError.

    Raises:
        ValueError: there is no such path.
    """
    global _path
    previous, _path = _path, _number(name)
    try:
        yield
    finally:
        _path = previous
