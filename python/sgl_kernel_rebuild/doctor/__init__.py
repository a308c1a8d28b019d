"""What is wrong with this machine, for anyone who runs torch extensions: facts, then findings.

Works without torch, without a GPU and without a network; imports neither torch nor what it examines.
"""

from __future__ import annotations

from ._findings import Finding, diagnose
from ._gpus import Driver, Gpu, ask_driver
from ._machine import Extension, ImportResult, Library, Machine, Torch, examine

__all__ = [
    "Driver",
    "Extension",
    "Finding",
    "Gpu",
    "ImportResult",
    "Library",
    "Machine",
    "Torch",
    "ask_driver",
    "diagnose",
    "examine",
]
