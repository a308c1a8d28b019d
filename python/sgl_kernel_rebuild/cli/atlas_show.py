"""``sgl-kernel-rebuild atlas show``: the history of a symbol."""

from __future__ import annotations

import json

import click

from sgl_kernel_rebuild.errors import BinaryError

__all__ = ["show"]


@click.command(epilog="Example: sgl-kernel-rebuild atlas show c10::cuda::SetDevice")
@click.argument("symbol", metavar="SYMBOL")
@click.option("--json", "is_json", is_flag=True, help="Print the history as JSON.")
def show(symbol: str, is_json: bool) -> None:
    """Say which releases of torch export a symbol, the first and the last of them.

    SYMBOL is a mangled name, as a loader's error shows it, a C function, or a C++ name with or without its
    parameters; without them all overloads are shown. Exit code 5: no release exports it.
    """
    from sgl_kernel_rebuild.abi import Atlas
    from sgl_kernel_rebuild.abi._demangle import demangle
    from sgl_kernel_rebuild.abi.certificate import describe_releases

    atlas = Atlas.load()
    found = [
        {
            "symbol": name,
            "demangled": demangle(name),
            "library": atlas.library(name),
            "first_release": atlas.exports(name)[0],
            "last_release": atlas.exports(name)[-1],
            "releases": list(atlas.exports(name)),
        }
        for name in atlas.find(symbol)
    ]
    if not found:
        raise BinaryError(
            f"atlas: {symbol}: expected a symbol of torch {atlas.releases[0]} to {atlas.releases[-1]}, got"
            " one that none exports\nName it as the loader does, or by its qualified C++ name."
        )
    if is_json:
        click.echo(json.dumps(found, indent=1))
        return
    for item in found:
        click.echo(item["demangled"])
        if item["symbol"] != item["demangled"]:
            click.echo(f"  {item['symbol']}")
        releases = describe_releases(atlas.exports(str(item["symbol"])), atlas.releases)
        click.echo(f"  {item['library']}: torch {releases}")
