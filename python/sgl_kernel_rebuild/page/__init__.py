"""Pages to look at: what an index offers and what an audit found, each one file of HTML without scripts."""

from __future__ import annotations

from ._render import PageWheel, render_audit, render_index

__all__ = ["PageWheel", "render_audit", "render_index"]
