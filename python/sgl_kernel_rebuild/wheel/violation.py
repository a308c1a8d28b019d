"""One broken promise of a wheel."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Violation"]


@dataclass(frozen=True, order=True)
class Violation:
    """``check`` names the check, ``where`` the file or item, ``message`` what was expected and found."""

    check: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.where}: {self.message}"

    def to_json(self) -> dict[str, str]:
        """Return the violation as plain JSON types."""
        return asdict(self)
