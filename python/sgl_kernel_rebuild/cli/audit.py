"""``sgl-kernel-rebuild audit``: which torch, GPU, Python and Linux a binary fits."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sgl_kernel_rebuild.cli._terminal import make_console, progress

if TYPE_CHECKING:
    from rich.table import Table

    from sgl_kernel_rebuild.abi.certificate import Missing
    from sgl_kernel_rebuild.audit import AuditReport, Finding

__all__ = ["audit"]

_SHOWN = 3
_COLUMNS = 4
"""Shared objects with verdicts of their own, side by side in one table."""


@click.command(epilog="Example: sgl-kernel-rebuild audit sgl-kernel==0.3.7 --torch 2.7.0 --gpu 'RTX 5090'")
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option(
    "--torch",
    "releases",
    metavar="RELEASE",
    multiple=True,
    help="Compare with this release alone; repeatable.",
)
@click.option(
    "--gpu",
    "gpus",
    metavar="GPU",
    multiple=True,
    help="Ask for code for this GPU (sm_120, 12.0, 'RTX 5090'); repeatable. Default: those of this machine.",
)
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the reports to FILE as a page of HTML, too.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the reports as JSON.")
def audit(
    targets: tuple[str, ...],
    releases: tuple[str, ...],
    gpus: tuple[str, ...],
    page: Path | None,
    is_json: bool,
) -> None:
    """Say which releases of torch a binary fits, what the others lack, and what else is wrong with it.

    TARGET is a shared object, a wheel, a folder, the name of an installed distribution, a requirement such as
    sgl-kernel==0.3.7 (its wheel is read from the package index piece by piece), or a text file of undefined
    symbols, one a line. Nothing is loaded or executed.

    Exit code 0: all fit every release from 2.7.0 on, or every one named by --torch, and nothing else is
    wrong. 5: one cannot be read. 10: one lacks symbols of torch. 11: one has no code for a GPU. 12: one needs
    a newer system than its tag promises. 13: one breaks what it promises of Python. Of several, the lowest.
    """
    from sgl_kernel_rebuild.abi import Atlas
    from sgl_kernel_rebuild.abi.certificate import OLDEST
    from sgl_kernel_rebuild.audit import Listener, find
    from sgl_kernel_rebuild.audit import audit as examine
    from sgl_kernel_rebuild.audit._findings import EXIT_CODES
    from sgl_kernel_rebuild.errors import BinaryError

    atlas = Atlas.load()
    try:
        chosen = tuple(dict.fromkeys(atlas.resolve(release) for release in releases)) or atlas.releases
    except BinaryError as err:
        raise click.BadParameter(str(err), param_hint="--torch") from err
    asked = chosen if releases else atlas.from_release(OLDEST)
    capabilities = _capabilities(gpus)
    reports: list[tuple[AuditReport, list[Finding]]] = []
    failures: list[str] = []
    with progress() as (start, advance):
        for target in targets:
            try:
                found = examine(target, releases=chosen, listener=Listener(start, advance))
            except BinaryError as err:
                failures.append(str(err))
                continue
            reports += [(report, find(report, asked, capabilities)) for report in found]
            failures += [message for report in found for message in report.unreadable]
    if page is not None:
        _write(page, _document(reports, failures)["reports"])
    if is_json:
        click.echo(json.dumps(_document(reports, failures), indent=1))
    else:
        for report, findings in reports:
            _print(report, findings, asked, is_detailed=bool(releases))
    for failure in failures:
        click.echo(f"error: {failure}", err=True)
    if failures:
        sys.exit(BinaryError.exit_code)
    kinds = {finding.kind for _, findings in reports for finding in findings}
    if codes := [code for kind, code in EXIT_CODES.items() if kind in kinds]:
        sys.exit(min(codes))


def _capabilities(gpus: Sequence[str]) -> list[str]:
    from sgl_kernel_rebuild.abi.gpu import parse_gpu

    if not gpus:
        from sgl_kernel_rebuild.doctor import ask_driver

        return sorted({gpu.capability for gpu in ask_driver()[2]})
    try:
        return list(dict.fromkeys(map(parse_gpu, gpus)))
    except ValueError as err:
        raise click.BadParameter(str(err), param_hint="--gpu") from err


def _document(reports: Sequence[tuple[AuditReport, list[Finding]]], failures: list[str]) -> dict[str, Any]:
    return {
        "reports": [
            {**report.to_json(), "findings": [finding.to_json() for finding in findings]}
            for report, findings in reports
        ],
        "errors": failures,
    }


def _write(page: Path, reports: list[dict[str, Any]]) -> None:
    from sgl_kernel_rebuild.errors import HostError
    from sgl_kernel_rebuild.page import render_audit

    try:
        page.write_bytes(render_audit(reports))
    except OSError as err:
        raise HostError(
            f"audit: {page}: cannot be written: {err.strerror or err}\nName a file that can be written."
        ) from err


def _print(report: AuditReport, findings: list[Finding], asked: Sequence[str], *, is_detailed: bool) -> None:
    from rich.text import Text

    console = make_console()
    certificate = report.certificate
    console.print(_matrix(report))
    misfits = [release for release in asked if certificate.missing(release)]
    for release in misfits if is_detailed else misfits[:1]:
        missing = certificate.missing(release)
        shown = missing if is_detailed else missing[:_SHOWN]
        console.print(Text(f"torch {release} lacks", style="bold"))
        for item in shown:
            console.print(Text(_describe(item)), soft_wrap=True)
        if len(missing) > len(shown):
            console.print(Text(f"  … and {len(missing) - len(shown)} more (--torch {release} lists them)"))
    console.print(_objects(report))
    grouped: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        grouped.setdefault((finding.kind, finding.message), []).append(finding.where)
    for (kind, message), places in grouped.items():
        style = "cyan" if kind == "note" else "red"
        console.print(Text.assemble((kind, style), f"  {', '.join(places)}: {message}"), soft_wrap=True)
    console.print(Text(report.conclusion, style="bold"), soft_wrap=True)


def _matrix(report: AuditReport) -> Table:
    """Return release by shared object; objects with the same verdicts share a column."""
    from rich.table import Table
    from rich.text import Text

    certificate = report.certificate
    groups: dict[tuple[int, ...], list[str]] = {}
    for item in certificate.objects:
        if item.torch_symbols:
            verdicts = tuple(len(item.missing[release]) for release in certificate.releases)
            groups.setdefault(verdicts, []).append(item.name)
    table = Table(title=Text(certificate.subject), title_justify="left")
    table.add_column("torch", no_wrap=True)
    shown = list(groups.items())
    if len(shown) > _COLUMNS:
        totals = tuple(len(certificate.missing(release)) for release in certificate.releases)
        shown = [(totals, [f"all {len(certificate.objects)} shared objects"])]
    for _, names in shown:
        more = f"\nand {len(names) - 1} more" if len(names) > 1 else ""
        table.add_column(Text(names[0] + more), overflow="fold")
    if not shown:
        table.add_column("no symbol of torch is used")
    for index, release in enumerate(certificate.releases):
        cells = [
            Text(f"misses {verdicts[index]}", style="red") if verdicts[index] else Text("fits", style="green")
            for verdicts, _ in shown
        ]
        table.add_row(release, *(cells or [Text("fits", style="green")]))
    return table


def _objects(report: AuditReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    from sgl_kernel_rebuild.abi.certificate import describe_releases
    from sgl_kernel_rebuild.audit._report import CAPABILITIES

    certificate = report.certificate
    table = Table()
    for name in (
        "shared object", "torch symbols", "fits torch", "GPU code", "no code for", "glibc", "libstdc++",
        "CUDA", "Python",
    ):  # fmt: skip
        table.add_column(name, overflow="fold")
    for item in certificate.objects:
        fits = describe_releases(item.fits, certificate.releases) or "none"
        cells = [item.name, str(len(item.torch_symbols)), fits]
        if item.name in report.code:
            targets, python = report.code[item.name], report.python[item.name]
            lacking = [f"sm_{gpu}" for gpu in CAPABILITIES if targets and not report.code_for(gpu)[item.name]]
            cells += [
                ", ".join(targets) or "none",
                ", ".join(lacking),
                item.shared_object.floor("GLIBC") or "any",
                item.shared_object.floor("GLIBCXX") or "any",
                report.cuda_runtimes.get(item.name, "none"),
                python.claims or ("unnamed" if python.uses_api else "any"),
            ]
        table.add_row(*map(Text, cells))
    return table


def _describe(missing: Missing) -> str:
    from sgl_kernel_rebuild.abi._demangle import demangle

    lines = [f"  {missing.demangled}", f"    {missing.history}"]
    lines += [f"    nearest there: {demangle(name)}" for name in missing.nearest[:_SHOWN]]
    return "\n".join(lines)
