"""``sgl-kernel-rebuild index check``: read an index back and report all that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sgl_kernel_rebuild.errors import PublishError

__all__ = ["check"]


@click.command(epilog="Example: sgl-kernel-rebuild index check wheelhouse --json")
@click.argument(
    "directory",
    metavar="[DIR]",
    default="wheelhouse",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--json", "is_json", is_flag=True, help="Print the report as JSON.")
def check(directory: Path, is_json: bool) -> None:
    """Check every page, link and hash of an index.

    DIR is the index directory, wheelhouse where none is given. Exits with 7 where anything is wrong.
    """
    from sgl_kernel_rebuild import index

    violations = index.validate(directory)
    interrupted = index.interrupted(directory)
    if is_json:
        report = {
            "index": str(directory),
            "ok": not violations,
            "interrupted": interrupted,
            "violations": [violation.to_dict() for violation in violations],
        }
        click.echo(json.dumps(report, indent=1))
    elif not violations:
        click.echo(f"{directory}: whole, {len(index.list_wheels(directory))} wheel(s)")
    if interrupted:
        click.echo(
            f"note: the publication of {', '.join(interrupted)} is under way or was cut short;"
            " the next publication completes it",
            err=True,
        )
    if violations:
        lines = [f"  {item.path}: {item.rule}: {item.message}" for item in violations]
        raise PublishError(
            f"index: {directory}: expected a whole index, got {len(violations)} violation(s)\n"
            + "\n".join(lines)
            + f"\nRestore the files, or remove {directory / 'simple'} and publish every wheel again."
        )
