"""``sgl-kernel-rebuild debug``: what is wrong with a deployment, an image or this machine."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sgl_kernel_rebuild.cli.doctor import ILL

if TYPE_CHECKING:
    from sgl_kernel_rebuild.deploy.debug import Finding

__all__ = ["debug"]


@click.command(epilog="Example: sgl-kernel-rebuild debug qwen3-32b-awq-source --bundle report.tar.gz")
@click.argument("name", required=False)
@click.option("--image", help="Look into this image: each check in a fresh container of it.")
@click.option("--host", "is_host", is_flag=True, help="Look at this machine, not into the container.")
@click.option("--engine", type=click.Choice(("docker", "podman")), help="By default the one installed.")
@click.option("--no-gpu", is_flag=True, help="Do not pass GPUs into the containers of --image.")
@click.option(
    "--bundle", type=click.Path(dir_okay=False, path_type=Path), help="Write all outputs as .tar.gz."
)
@click.option("--dry-run", is_flag=True, help="Print what would be run.")
@click.option("--json", "is_json", is_flag=True, help="Print the findings as JSON.")
def debug(
    name: str | None,
    image: str | None,
    is_host: bool,
    engine: str | None,
    no_gpu: bool,
    bundle: Path | None,
    dry_run: bool,
    is_json: bool,
) -> None:
    """Look for what is wrong: the doctor's findings, nvidia-smi, the import chain, one kernel, the log.

    NAME is a deployment; without one, and without --image, this machine is looked at. The bundle is for a
    bug report: the API key, tokens, user, host and home names are taken out of it.

    Exit code 0: nothing found. 14: a problem was found.
    """
    from sgl_kernel_rebuild.deploy import container
    from sgl_kernel_rebuild.deploy.debug import Place, checks, examine, write_bundle
    from sgl_kernel_rebuild.deploy.state import Deployment, read_key
    from sgl_kernel_rebuild.redact import make_redactor

    deployment = Deployment(name) if name else None
    record = deployment.record() if deployment else {}
    if image is None and not is_host:
        # Where the deployment's container is gone, its image still says what was in it.
        image, engine = record.get("image"), engine or record.get("engine")
    if image is None:
        place = Place.host()
    elif deployment and not is_host and container.state(str(engine), deployment.name) == "running":
        place = Place.container(str(engine), deployment.name)
    else:
        place = Place.image(container.find_engine(engine, is_needed=not dry_run), image, has_gpu=not no_gpu)

    def show(command: Sequence[str]) -> None:
        click.echo(f"$ {shlex.join(line.strip() for line in command)}", err=is_json)

    if dry_run:
        for _, command in checks(place, deployment):
            show(command)
        return
    findings = examine(place, deployment, progress=show)
    keys = [read_key(deployment.key_file)] if deployment and deployment.key_file.exists() else []
    redact = make_redactor(keys)
    if bundle is not None:
        write_bundle(bundle, place, findings, deployment, redact)
    if is_json:
        shown = [{k: v for k, v in asdict(item).items() if k != "output"} for item in findings]
        click.echo(redact(json.dumps({"place": place.name, "findings": shown}, indent=1)))
    else:
        _print(findings, redact(place.name))
        if bundle is not None:
            click.echo(f"Everything is in {bundle}: look through it before you attach it to a report.")
    if any(finding.verdict == "problem" for finding in findings):
        sys.exit(ILL)


def _print(findings: Sequence[Finding], place: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "problem": "red", "absent": "yellow"}
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=Text(place), title_justify="left")
    for column in ("check", "verdict", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for item in findings:
        verdict = Text(item.verdict, style=styles[item.verdict])
        table.add_row(Text(item.name), verdict, Text(item.detail), Text(item.fix or ""))
    console.print(table)
