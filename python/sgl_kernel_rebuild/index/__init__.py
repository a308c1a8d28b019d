"""The wheel index: a directory of wheels that pip installs from, served or straight from disk.

An index directory holds the wheels (for ``pip --find-links``) and ``simple/``, the Simple repository
API over them as HTML (PEP 503) and JSON (PEP 691, 700), with each wheel's core metadata beside it
(PEP 658, 714). All pages are a function of the wheels alone, and all links are relative.

- :func:`publish` adds wheels: immutable (a file name never changes its bytes), locked, atomic.
- :func:`validate` reads an index back and returns all its violations.
- :func:`list_wheels` returns what the index offers.
- :func:`make_server` serves it on the loopback interface.
"""

from __future__ import annotations

from sgl_kernel_rebuild.index._pages import IndexedWheel
from sgl_kernel_rebuild.index._publish import Published, publish
from sgl_kernel_rebuild.index._serve import make_server
from sgl_kernel_rebuild.index._store import interrupted, list_wheels
from sgl_kernel_rebuild.index._validate import Violation, validate

__all__ = [
    "IndexedWheel",
    "Published",
    "Violation",
    "interrupted",
    "list_wheels",
    "make_server",
    "publish",
    "validate",
]
