"""``sgl-kernel-rebuild atlas list``: the releases of torch that are known."""

from __future__ import annotations

import json

import click

from sgl_kernel_rebuild.cli._terminal import make_console

__all__ = ["list_"]


@click.command("list", epilog="Example: sgl-kernel-rebuild atlas list")
@click.option("--json", "is_json", is_flag=True, help="Print the list as JSON.")
def list_(is_json: bool) -> None:
    """List the releases of torch, how many symbols each exports, and what came and went."""
    from sgl_kernel_rebuild.abi import Atlas

    atlas = Atlas.load()
    counts = atlas.counts()
    rows = []
    previous = None
    for release in atlas.releases:
        gone, added = atlas.difference(previous or release, release)
        rows.append({"torch": release, "symbols": counts[release], "added": len(added), "removed": len(gone)})
        previous = release
    if is_json:
        click.echo(json.dumps({"libraries": list(atlas.libraries), "releases": rows}, indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"exports of {', '.join(atlas.libraries)}"), title_justify="left")
    table.add_column("torch")
    for name in ("symbols", "added", "removed"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    make_console().print(table)
