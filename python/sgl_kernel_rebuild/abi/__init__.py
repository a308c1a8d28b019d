"""What a binary needs of torch and what it carries for the GPU, read without loading it."""

from __future__ import annotations

from .atlas import Atlas
from .certificate import Certificate, certify

__all__ = ["Atlas", "Certificate", "certify"]
