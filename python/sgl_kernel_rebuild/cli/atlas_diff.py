"""``sgl-kernel-rebuild atlas diff``: what changed between two releases of torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sgl_kernel_rebuild.abi import Atlas

__all__ = ["diff"]


@click.command(epilog="Example: sgl-kernel-rebuild atlas diff 2.7.0 2.8.0 --match c10::cuda")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--match", "text", metavar="TEXT", default="", help="Show names that contain TEXT alone.")
@click.option(
    "--limit",
    default=40,
    show_default=True,
    type=click.IntRange(min=0),
    help="Lines of each kind; 0 shows all.",
)
@click.option("--json", "is_json", is_flag=True, help="Print all of it as JSON.")
def diff(old: str, new: str, text: str, limit: int, is_json: bool) -> None:
    """Say which symbols torch NEW no longer exports, which it exports anew, and which have other parameters.

    A changed name is one that both releases export, with overloads that only one of them has: what breaks an
    extension although nothing seems to be gone.
    """
    from sgl_kernel_rebuild.abi import Atlas
    from sgl_kernel_rebuild.errors import BinaryError

    atlas = Atlas.load()
    try:
        before, after = atlas.resolve(old), atlas.resolve(new)
    except BinaryError as err:
        raise click.UsageError(str(err)) from err
    changed, removed, added = _compare(atlas, before, after, text)
    if is_json:
        document = {
            "old": before,
            "new": after,
            "changed": [{"name": name, "old": olds, "new": news} for name, (olds, news) in changed.items()],
            "removed": removed,
            "added": added,
        }
        click.echo(json.dumps(document, indent=1))
        return
    pairs = [
        "\n".join([*(f"- {line}" for line in olds), *(f"+ {line}" for line in news)])
        for olds, news in changed.values()
    ]
    click.echo(
        f"torch {before} to {after}: {len(changed)} names changed, {len(removed)} symbols removed,"
        f" {len(added)} added"
    )
    for title, lines in (
        ("changed", pairs),
        ("removed", [f"- {line}" for line in removed]),
        ("added", [f"+ {line}" for line in added]),
    ):
        if lines:
            click.echo(f"\n{title}")
            _echo(lines, limit)


def _compare(
    atlas: Atlas, before: str, after: str, text: str
) -> tuple[dict[str, tuple[list[str], list[str]]], list[str], list[str]]:
    """Return qualified name -> (old, new) declarations, then those removed and added, sorted."""
    from sgl_kernel_rebuild.abi._demangle import demangle, qualified_name

    gone, came = (
        sorted({shown for name in names if text in (shown := demangle(name))})
        for names in atlas.difference(before, after)
    )

    def by_name(declarations: Iterable[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for declaration in declarations:
            name = qualified_name(declaration)
            if name != declaration:  # a function of C++: only those have parameters in their names
                found.setdefault(name, []).append(declaration)
        return found

    olds, news = by_name(gone), by_name(came)
    changed = {name: (olds[name], news[name]) for name in sorted(olds.keys() & news.keys())}
    paired = {line for pair in changed.values() for lines in pair for line in lines}
    removed, added = ([line for line in lines if line not in paired] for lines in (gone, came))
    return changed, removed, added


def _echo(lines: list[str], limit: int) -> None:
    shown = lines[:limit] if limit else lines
    for line in shown:
        click.echo(line)
    if len(lines) > len(shown):
        click.echo(f"… and {len(lines) - len(shown)} more (--limit 0 shows all)")
