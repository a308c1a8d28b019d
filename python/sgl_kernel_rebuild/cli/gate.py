"""``sgl-kernel-rebuild gate``: prove a wheel before anyone gets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from sgl_kernel_rebuild.wheel.gate import GateReport

__all__ = ["gate"]

_WIDTH_OF_A_FILE = 160


@click.command(epilog="Example: sgl-kernel-rebuild gate dist/sgl_kernel-*-linux_x86_64.whl --output proven")
@click.argument(
    "raw_wheel", metavar="RAW_WHEEL", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the proven wheel; made if it is not there.",
)
@click.option(
    "--max-mb",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Largest size of the wheel, in 10^6 bytes.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the report as JSON.")
def gate(raw_wheel: Path, output: Path, max_mb: float, is_json: bool) -> None:
    """Repair a freshly built wheel, prove it, and put the proofs into it.

    Proven are: the symbols of torch against every release from 2.7.0 on, the tags against the needs of the
    library, machine code for every operator and architecture, the API against the published 0.3.7, size and
    hashes. RAW_WHEEL stays as it is. A wheel that breaks a promise is refused with the list of what it
    breaks (exit code 6), and nothing is written.
    """
    from sgl_kernel_rebuild.wheel.gate import run_gate

    report = run_gate(raw_wheel, output, max_mb=max_mb)
    if is_json:
        click.echo(json.dumps({**report.to_json(), "path": str(report.wheel)}, indent=1))
    else:
        _print(report)


def _print(report: GateReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_A_FILE)
    inspection = report.inspection
    verdicts = Table(title="torch by torch", title_justify="left")
    verdicts.add_column("torch")
    verdicts.add_column("verdict")
    for release in inspection.certificate.releases:
        missing = inspection.certificate.missing(release)
        verdict = Text(f"misses {len(missing)}", style="red") if missing else Text("fits", style="green")
        verdicts.add_row(release, verdict)
    console.print(verdicts)
    console.print(_coverage(report))
    counts = inspection.api
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("tags", ", ".join(inspection.tags.tags)),
        ("glibc needed", inspection.tags.glibc_floor or "none"),
        ("API", f"{len(counts.provided)} provided, {len(counts.not_provided)} not provided yet"),
        ("spilling", ", ".join(inspection.coverage.spilling) or "no kernel"),
        ("size", f"{report.size / 1e6:.2f} MB"),
        ("sha256", report.sha256),
        ("content", report.content),
    ):
        facts.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    console.print(facts)
    click.echo(str(report.wheel))


def _coverage(report: GateReport) -> Table:
    """Return operators by architecture: how many kernels, and the most registers one of them takes."""
    from rich.table import Table
    from rich.text import Text

    coverage = report.inspection.coverage
    table = Table(title="kernels (most registers) per operator and target", title_justify="left")
    table.add_column("operator", overflow="fold")
    for target in coverage.targets:
        table.add_column(target, justify="right")
    for op, targets in sorted(coverage.ops.items()):
        cells = []
        for target in coverage.targets:
            names = targets[target]
            registers = [
                kernel.registers
                for name in names
                for kernel in (coverage.kernels[name].get(target),)
                if kernel is not None
            ]
            cells.append(f"{len(names)} ({max(registers)})" if registers else str(len(names)))
        table.add_row(Text(op), *cells)
    return table
