"""``sgl-kernel-rebuild atlas update``: read the releases of torch anew."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sgl_kernel_rebuild.cli._terminal import progress

__all__ = ["update"]


@click.command(epilog="Example: sgl-kernel-rebuild atlas update --output torch_exports.txt.xz")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write there. Default: the file that this installation reads.",
)
@click.option(
    "--cache",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep there what was read of each release. Default: the user's cache folder.",
)
@click.option(
    "--torch", "releases", metavar="RELEASE", multiple=True, help="Read this release alone; repeatable."
)
@click.option("--json", "is_json", is_flag=True, help="Print the result as JSON.")
def update(output: Path | None, cache: Path | None, releases: tuple[str, ...], is_json: bool) -> None:
    """Make the export tables from the torch wheels on the package index.

    Of each release from 2.5.0 on, the libraries whose exports extensions use are read by HTTP ranges; sizes
    and checksums are verified. An interrupted run goes on where it stopped: what was read of a release is
    kept in the cache. The file changes only when everything has been read; the same releases give the same
    bytes.
    """
    from platformdirs import user_cache_path

    from sgl_kernel_rebuild.abi._update import default_target
    from sgl_kernel_rebuild.abi._update import update as collect

    target = output or default_target()
    before = target.read_bytes() if target.is_file() else b""
    with progress() as (start, advance):
        names = collect(
            target,
            cache or user_cache_path("sgl-kernel-rebuild") / "atlas",
            releases=releases or None,
            on_start=lambda release, size: start(f"torch {release}", size),
            on_read=advance,
        )
    size = target.stat().st_size
    is_changed = target.read_bytes() != before
    if is_json:
        result = {"path": str(target), "releases": list(names), "size": size, "changed": is_changed}
        click.echo(json.dumps(result, indent=1))
        return
    click.echo(f"torch {', '.join(names)}")
    click.echo(f"{target}: {size} bytes, {'changed' if is_changed else 'unchanged'}")
