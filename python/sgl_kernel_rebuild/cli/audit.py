"""``sgl-kernel-rebuild audit``: which torch a binary fits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sgl_kernel_rebuild.abi.certificate import Missing
    from sgl_kernel_rebuild.wheel.audit import AuditReport

__all__ = ["MISSES", "audit"]

MISSES = 10
"""Exit code: every target was read, and one at least lacks symbols of a release asked about."""

_WIDTH_OF_A_FILE = 160
_SHOWN = 3


@click.command(epilog="Example: sgl-kernel-rebuild audit sgl_kernel-0.3.7-*.whl --torch 2.7.0")
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--torch",
    "releases",
    metavar="RELEASE",
    multiple=True,
    help="Compare with this release alone; repeatable.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the reports as JSON.")
def audit(targets: tuple[Path, ...], releases: tuple[str, ...], is_json: bool) -> None:
    """Say which releases of torch a binary fits, and what the others lack.

    TARGET is a shared object, a wheel, or a text file of undefined symbols, one a line. Nothing is loaded
    or executed.

    Exit code 0: all fit every release from 2.7.0 on, or every one named by --torch. 10: one lacks symbols
    there. 5: one cannot be read.
    """
    from sgl_kernel_rebuild.abi import Atlas
    from sgl_kernel_rebuild.abi.certificate import OLDEST
    from sgl_kernel_rebuild.errors import BinaryError
    from sgl_kernel_rebuild.wheel.audit import audit as examine

    atlas = Atlas.load()
    try:
        chosen = tuple(dict.fromkeys(atlas.resolve(release) for release in releases)) or atlas.releases
    except BinaryError as err:
        raise click.BadParameter(str(err), param_hint="--torch") from err
    asked = chosen if releases else atlas.from_release(OLDEST)
    reports: list[AuditReport] = []
    failures: list[BinaryError] = []
    for target in targets:
        try:
            reports.append(examine(target, releases=chosen))
        except BinaryError as err:
            failures.append(err)
    if is_json:
        document = {"reports": [item.to_json() for item in reports], "errors": list(map(str, failures))}
        click.echo(json.dumps(document, indent=1))
    else:
        for item in reports:
            _print(item, is_detailed=bool(releases))
    for failure in failures:
        click.echo(f"error: {failure}", err=True)
    if failures:
        sys.exit(BinaryError.exit_code)
    if any(item.certificate.missing(release) for item in reports for release in asked):
        sys.exit(MISSES)


def _print(report: AuditReport, *, is_detailed: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sgl_kernel_rebuild.abi.certificate import describe_releases

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_A_FILE)
    certificate = report.certificate
    verdicts = Table(title=Text(certificate.subject), title_justify="left")
    verdicts.add_column("torch", no_wrap=True)
    verdicts.add_column("verdict", no_wrap=True)
    verdicts.add_column("missing", overflow="fold")
    for release in certificate.releases:
        missing = certificate.missing(release)
        verdict = Text(f"misses {len(missing)}", style="red") if missing else Text("fits", style="green")
        shown = missing if is_detailed else missing[:_SHOWN]
        lines = [_describe(item) for item in shown]
        if len(missing) > len(shown):
            lines.append(f"… and {len(missing) - len(shown)} more (--torch {release} lists them)")
        verdicts.add_row(release, verdict, Text("\n".join(lines)))
    console.print(verdicts)
    objects = Table()
    columns = ("shared object", "torch symbols", "fits torch", "GPU code", "glibc", "libcudart")
    for name in columns:
        objects.add_column(name, overflow="fold")
    for item in certificate.objects:
        cells = [
            item.name,
            str(len(item.torch_symbols)),
            describe_releases(item.fits, certificate.releases) or "none",
        ]
        if item.name in report.code:
            cells += [
                ", ".join(report.code[item.name]) or "none",
                item.shared_object.floor("GLIBC") or "any",
                report.cuda_runtimes.get(item.name, "none"),
            ]
        objects.add_row(*map(Text, cells))
    console.print(objects)
    console.print(Text(certificate.conclusion, style="bold"))


def _describe(missing: Missing) -> str:
    from sgl_kernel_rebuild.abi._demangle import demangle

    lines = [missing.demangled, f"  {missing.history}"]
    lines += [f"  nearest there: {demangle(name)}" for name in missing.nearest[:_SHOWN]]
    return "\n".join(lines)
