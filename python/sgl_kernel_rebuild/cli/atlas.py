"""``sgl-kernel-rebuild atlas``: the export tables of torch's releases."""

from __future__ import annotations

import click

from sgl_kernel_rebuild.cli.atlas_diff import diff
from sgl_kernel_rebuild.cli.atlas_list import list_
from sgl_kernel_rebuild.cli.atlas_show import show
from sgl_kernel_rebuild.cli.atlas_update import update

__all__ = ["atlas"]


@click.group(epilog="Example: sgl-kernel-rebuild atlas show c10::cuda::SetDevice")
def atlas() -> None:
    """See which release of torch exports what, or read the releases anew."""


atlas.add_command(diff)
atlas.add_command(list_)
atlas.add_command(show)
atlas.add_command(update)
