"""A string that does not print."""

from __future__ import annotations

from sgl_kernel_rebuild.redact import HIDDEN

__all__ = ["Secret"]


class Secret(str):
    """A string whose ``repr`` hides it, as in the log line in which a server prints its options."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{HIDDEN}'"
