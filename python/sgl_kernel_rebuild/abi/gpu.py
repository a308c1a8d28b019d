"""Which code runs on which GPU: the rules of CUDA, and names of cards.

CUDA C++ Programming Guide, "Binary compatibility" and "PTX compatibility"; architecture-specific (``sm_90a``)
and family-specific (``sm_100f``) targets as of CUDA 12.9.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["CARDS", "find_code", "parse_gpu"]

CARDS = {
    "V100": "70", "T4": "75", "RTX 2080": "75", "A100": "80", "A30": "80", "A10": "86", "RTX 3090": "86",
    "Jetson Orin": "87", "L4": "89", "L40S": "89", "RTX 4090": "89", "H100": "90", "H200": "90",
    "B200": "100", "B300": "103", "RTX 5090": "120", "RTX PRO 6000": "120", "DGX Spark": "121",
}  # fmt: skip
"""Compute capability, without its dot, of cards that people have."""

_TARGET = re.compile(r"(sm|compute)_(\d+)([af]?)")
_GPU = re.compile(r"(?:sm_|compute_)?(\d{1,2})\.?(\d)[af]?")


def parse_gpu(text: str) -> str:
    """Return the compute capability that ``text`` names (``sm_120``, ``12.0``, ``RTX 5090``), as in ``120``.

    Raises:
        ValueError: it names none.
    """
    for name, capability in CARDS.items():
        if name.replace(" ", "").lower() == text.replace(" ", "").lower():
            return capability
    match = _GPU.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"gpu: expected sm_120, 12.0 or one of {', '.join(CARDS)}, got {text!r}")
    return match[1] + match[2]


def find_code(targets: Iterable[str], capability: str) -> str:
    """Return what a GPU of ``capability`` (``120``) would use of ``targets``: machine code, else PTX,
    else "".

    Machine code runs on its own major version from its own minor version on; ``a`` code on its own
    capability alone; ``f`` code within its family. PTX runs wherever it can be compiled: on its own
    capability and later ones.
    """
    wanted = int(capability)
    best: tuple[int, int, str] = (0, 0, "")
    for target in targets:
        match = _TARGET.fullmatch(target)
        if match is None:
            continue
        have, suffix = int(match[2]), match[3]
        is_code = match[1] == "sm"
        if suffix == "a":
            fits = have == wanted
        elif is_code or suffix == "f":
            fits = have // 10 == wanted // 10 and have <= wanted
        else:
            fits = have <= wanted
        if fits:
            best = max(best, (2 if is_code else 1, have, target))
    return best[2]
