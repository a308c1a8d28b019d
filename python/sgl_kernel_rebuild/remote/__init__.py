"""Wheels on a package index, read by HTTP ranges: the table of contents, then the members asked for.

Needs the extra ``remote``: pypi-simple (the index's pages, PEP 503 and 691) and remotezip (ranges).
"""

from __future__ import annotations

from ._index import RemoteWheel, choose_wheel, find_wheels
from ._open import open_remote

__all__ = ["RemoteWheel", "choose_wheel", "find_wheels", "open_remote"]
