"""``sgl-kernel-rebuild``: one module per subcommand, added here.

This package alone prints and exits; everything it calls raises :class:`FactoryError`. A subcommand
imports what it needs inside its function, so that ``--help`` is instant.

Exit codes: 0 success, 2 wrong usage, up to 9 that of the error class (:mod:`sgl_kernel_rebuild.errors`); from
10 on what a command found, as its own module says.
"""

from __future__ import annotations

import sys

import click

from sgl_kernel_rebuild import __version__
from sgl_kernel_rebuild.cli.atlas import atlas
from sgl_kernel_rebuild.cli.audit import audit
from sgl_kernel_rebuild.cli.debug import debug
from sgl_kernel_rebuild.cli.deploy import deploy
from sgl_kernel_rebuild.cli.doctor import doctor
from sgl_kernel_rebuild.cli.gate import gate
from sgl_kernel_rebuild.cli.image import image
from sgl_kernel_rebuild.cli.index import index
from sgl_kernel_rebuild.cli.publish import publish
from sgl_kernel_rebuild.cli.test_api import test_api
from sgl_kernel_rebuild.errors import FactoryError

__all__ = ["main"]


class _Group(click.Group):
    """Turns a FactoryError into its message on stderr and its exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except FactoryError as err:
            click.echo(f"error: {err}", err=True)
            sys.exit(err.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sgl-kernel-rebuild")
def main() -> None:
    """Build, prove and publish the sgl_kernel wheel that fits every torch from 2.7.0 on."""


main.add_command(atlas)
main.add_command(audit)
main.add_command(debug)
main.add_command(deploy)
main.add_command(doctor)
main.add_command(gate)
main.add_command(image)
main.add_command(index)
main.add_command(publish)
main.add_command(test_api)
