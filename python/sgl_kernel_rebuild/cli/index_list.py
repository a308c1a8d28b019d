"""``sgl-kernel-rebuild index list``: what an index offers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sgl_kernel_rebuild.index import IndexedWheel

__all__ = ["list_"]

# Wide enough for a file name and a whole hash: a report that goes into a file is not cut.
_WIDTH_OF_A_FILE = 240


@click.command("list", epilog="Example: sgl-kernel-rebuild index list wheelhouse")
@click.argument(
    "directory",
    metavar="[DIR]",
    default="wheelhouse",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--json", "is_json", is_flag=True, help="Print the list as JSON.")
def list_(directory: Path, is_json: bool) -> None:
    """List the wheels of an index.

    DIR is the index directory, wheelhouse where none is given.
    """
    from sgl_kernel_rebuild import index

    wheels = index.list_wheels(directory)
    if is_json:
        click.echo(json.dumps([_to_dict(wheel) for wheel in wheels], indent=1))
    else:
        _print_table(str(directory), wheels)


def _to_dict(wheel: IndexedWheel) -> dict[str, object]:
    return {
        "project": wheel.project,
        "version": str(wheel.version),
        "tags": sorted(map(str, wheel.tags)),
        "filename": wheel.filename,
        "size": wheel.size,
        "sha256": wheel.sha256,
        "requires_python": wheel.requires_python,
    }


def _print_table(title: str, wheels: list[IndexedWheel]) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    table.add_column("project")
    table.add_column("version")
    table.add_column("tags", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("sha256", overflow="fold")
    for wheel in wheels:
        # Text: the strings are data, not rich's markup.
        cells = [wheel.project, str(wheel.version), "\n".join(sorted(map(str, wheel.tags)))]
        size = "" if wheel.size is None else decimal(wheel.size)
        table.add_row(*map(Text, [*cells, size, wheel.sha256]))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_A_FILE)
    console.print(table)
