"""``sgl-kernel-rebuild index``: look at an index directory, check it, serve it."""

from __future__ import annotations

import click

from sgl_kernel_rebuild.cli.index_check import check
from sgl_kernel_rebuild.cli.index_list import list_
from sgl_kernel_rebuild.cli.index_serve import serve

__all__ = ["index"]


@click.group(epilog="Example: sgl-kernel-rebuild index check wheelhouse")
def index() -> None:
    """Check, list or serve an index of wheels."""


index.add_command(check)
index.add_command(list_)
index.add_command(serve)
