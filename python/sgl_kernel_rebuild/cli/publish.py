"""``sgl-kernel-rebuild publish``: add wheels to an index directory."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

__all__ = ["publish"]


@click.command(epilog="Example: sgl-kernel-rebuild publish dist/*.whl --index wheelhouse")
@click.argument(
    "wheels",
    metavar="WHEEL...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--index",
    "directory",
    default="wheelhouse",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Index directory; made if it is not there.",
)
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to wait for another publisher.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the result as JSON.")
def publish(wheels: tuple[Path, ...], directory: Path, timeout: float, is_json: bool) -> None:
    """Add wheels to an index that pip installs from.

    All of them are checked before anything is written. Publishing the same bytes again changes nothing;
    other bytes under a published file name are refused.
    """
    from sgl_kernel_rebuild import index

    results = index.publish(wheels, directory, timeout=timeout)
    if is_json:
        report = {"index": str(directory), "wheels": [result.to_dict() for result in results]}
        click.echo(json.dumps(report, indent=1))
        return
    for result in results:
        state = "published" if result.is_new else "unchanged"
        click.echo(f"{state}  {result.wheel.filename}  sha256={result.wheel.sha256}")
    requirements = sorted({result.wheel.requirement for result in results})
    click.echo(
        f"\nInstall with: pip install --find-links {shlex.quote(str(directory))} {' '.join(requirements)}"
    )
