"""What a wheel claims, held against what it is: tags, symbols, machine code, API."""

from __future__ import annotations

from .archive import Wheel, open_wheel
from .violation import Violation

__all__ = ["Violation", "Wheel", "open_wheel"]
