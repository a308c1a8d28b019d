"""``sgl-kernel-rebuild doctor``: what is wrong with this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sgl_kernel_rebuild.cli._terminal import make_console

if TYPE_CHECKING:
    from sgl_kernel_rebuild.doctor import Extension, Finding, Machine

__all__ = ["ILL", "doctor"]

ILL = 14
"""Exit code, of debug too: something was found that stops work."""

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
SCHEMA = 1


@click.command(epilog="Example: sgl-kernel-rebuild doctor --report report.json")
@click.option("--json", "is_json", is_flag=True, help="Print facts and findings as JSON.")
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write them to FILE for a bug report: without user names, host names, addresses and tokens.",
)
def doctor(is_json: bool, report: Path | None) -> None:
    """Look at this machine and say what is wrong, why, and which command fixes it.

    Examined are Python, torch, the driver, the GPUs, every installed torch extension, the loader's paths,
    the import of sgl_kernel (in a process of its own) and what SGLang asks for. Works without torch, without
    a GPU and without a network; nothing is changed.

    Exit code 0: nothing that stops work. 14: at least one error was found.
    """
    from rich.console import Console

    from sgl_kernel_rebuild.doctor import diagnose, examine
    from sgl_kernel_rebuild.errors import HostError
    from sgl_kernel_rebuild.redact import make_redactor

    with Console(stderr=True).status("Looking at this machine"):
        machine = examine()
        findings = diagnose(machine)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "healthy": not any(item.severity == "error" for item in findings),
        "findings": [item.to_json() for item in findings],
        "machine": machine.to_json(),
    }
    if report is not None:
        try:
            report.write_text(
                json.dumps(make_redactor(has_addresses=False).document(document), indent=1) + "\n"
            )
        except OSError as err:
            raise HostError(
                f"doctor: {report}: cannot be written: {err.strerror or err}\n"
                "Name a file that can be written."
            ) from err
    if is_json:
        click.echo(json.dumps(document, indent=1))
    else:
        _print(machine, findings)
        if report is not None:
            click.echo(f"report written to {report}; read it before you send it")
    if not document["healthy"]:
        sys.exit(ILL)


def _print(machine: Machine, findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = make_console()
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(machine):
        facts.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    console.print(facts)
    for item in findings:
        console.print()
        console.print(
            Text.assemble((item.severity, _STYLES[item.severity]), "  ", (item.title, "bold")), soft_wrap=True
        )
        console.print(Text(f"  why  {item.why}"), soft_wrap=True)
        if item.fix:
            console.print(Text(f"  fix  {item.fix}", style="green"), soft_wrap=True)
    console.print()
    errors = sum(item.severity == "error" for item in findings)
    console.print(Text(f"{errors} errors, {len(findings) - errors} other findings", style="bold"))


def _facts(machine: Machine) -> list[tuple[str, str]]:
    driver = machine.driver
    rows = [
        ("Python", f"{machine.python}, {machine.glibc}"),
        ("torch", _torch(machine)),
        ("driver", f"{driver.version}, CUDA up to {driver.cuda}" if driver else "none"),
    ]
    for gpu in machine.gpus:
        rows.append(("GPU", f"{gpu.name}, sm_{gpu.capability}, {gpu.memory / 2**30:.0f} GiB"))
    if machine.sglang_wants:
        rows.append(("SGLang", f"{machine.distributions.get('sglang', '')}, asks for {machine.sglang_wants}"))
    for extension in machine.extensions:
        rows.append((f"{extension.distribution} {extension.version}", _extension(machine, extension)))
    for result in machine.imports:
        rows.append((f"import {result.module}", "fails" if result.error else "works"))
    return rows


def _torch(machine: Machine) -> str:
    torch = machine.torch
    if torch is None:
        return "not installed"
    built = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.hip}" if torch.hip else "CPU only"
    abi = {True: "new C++ ABI", False: "old C++ ABI", None: "does not import"}[torch.cxx11_abi]
    return f"{torch.version}, {built if torch.cxx11_abi is not None else 'unknown build'}, {abi}"


def _extension(machine: Machine, extension: Extension) -> str:
    from sgl_kernel_rebuild.abi import Atlas
    from sgl_kernel_rebuild.abi.certificate import describe_releases
    from sgl_kernel_rebuild.abi.gpu import find_code

    name = extension.path.rpartition("/")[2]
    if extension.error:
        return f"{name}: cannot be read"
    if extension.missing is None:
        fits = describe_releases(extension.fits, Atlas.load().releases)
        verdict = f"fits torch {fits}" if fits else "fits no torch in the atlas"
    else:
        verdict = f"misses {len(extension.missing)}" if extension.missing else "fits"
    cells = [verdict, ", ".join(extension.targets) or "no GPU code"]
    if extension.targets:
        for capability in sorted({gpu.capability for gpu in machine.gpus}):
            cells.append(f"sm_{capability} would use {find_code(extension.targets, capability) or 'nothing'}")
    return f"{name}: {'; '.join(cells)}"
