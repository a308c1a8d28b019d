"""``sgl-kernel-rebuild test-api``: is a server what it should be, and how fast."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sgl_kernel_rebuild.deploy.api_test import Report

__all__ = ["FAILS", "test_api"]

FAILS = 15
"""Exit code: every check was run, and one at least failed."""


@click.command(
    "test-api", epilog="Example: sgl-kernel-rebuild test-api --output report.json --plot report.png"
)
@click.argument("name", required=False)
@click.option("--url", help="A server in place of a deployment, such as http://127.0.0.1:8000.")
@click.option(
    "--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File with its API key."
)
@click.option("--model", help="The name that it must serve; that of the deployment, or the first it lists.")
@click.option("--profile", help="Thresholds: a name in deploy/profiles or a .toml file; the deployment's.")
@click.option("--concurrency", type=click.IntRange(1), help="Requests at a time.")
@click.option("--requests", type=click.IntRange(1), help="Requests in all.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds for one request.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as JSON.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the waiting times (PNG).")
@click.option("--dry-run", is_flag=True, help="Print what would be checked.")
@click.option("--json", "is_json", is_flag=True, help="Print the report as JSON.")
def test_api(
    name: str | None,
    url: str | None,
    key_file: Path | None,
    model: str | None,
    profile: str | None,
    output: Path | None,
    plot: Path | None,
    dry_run: bool,
    is_json: bool,
    **overrides: Any,
) -> None:
    """Check a server by the openai client: health, models, completion, chat, streaming, a wrong key, bad
    input, long prompts, concurrency; time to first token, tokens per second, percentiles.

    NAME is a deployment, the only one by default. Exit code 0: all passed. 15: a check failed, or the server
    is slower than the profile allows.
    """
    from sgl_kernel_rebuild.cli.deploy import open_deployment
    from sgl_kernel_rebuild.deploy import api_test
    from sgl_kernel_rebuild.deploy.profile import Thresholds, find_profile, load_profile
    from sgl_kernel_rebuild.deploy.state import read_key

    limits = Thresholds()
    if url is None:
        deployment = open_deployment(name)
        record = deployment.record()
        url, key_file = record["url"], key_file or deployment.key_file
        model = model or record["served_name"]
        limits = Thresholds(**record["test"])
    elif key_file is None:
        raise click.UsageError("--url needs --key-file: a key on the command line could be read by others")
    if profile is not None:
        limits = load_profile(find_profile(profile)).test
    given = {option: value for option, value in overrides.items() if value is not None}
    limits = dataclasses.replace(limits, **given)
    if dry_run:
        for check, _, _ in api_test.CHECKS:
            click.echo(f"$ {check} at {url}, key from {key_file}")
        return
    assert key_file is not None
    progress = _progress(is_json or not sys.stderr.isatty())
    report = api_test.run(url, read_key(key_file), model=model, limits=limits, progress=progress)
    document = json.dumps(report.to_json(), indent=1)
    if output is not None:
        output.write_text(document + "\n", encoding="utf-8")
    if plot is not None:
        from sgl_kernel_rebuild.deploy._plot import draw

        draw(report, plot)
    if is_json:
        click.echo(document)
    else:
        _print(report)
    if not report.passed:
        sys.exit(FAILS)


def _progress(is_silent: bool) -> Any:
    return lambda name: None if is_silent else click.echo(f"… {name}", err=True)


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"pass": "green", "fail": "red", "skip": "yellow"}
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=Text(f"{report.model} at {report.url}"), title_justify="left")
    for column in ("check", "verdict", "detail"):
        table.add_column(column, overflow="fold")
    for check in report.checks:
        table.add_row(check.name, Text(check.verdict, style=styles[check.verdict]), Text(check.detail))
    console.print(table)
    figures = report.figures()
    if not figures:
        return
    table = Table(title="seconds, and tokens per second", title_justify="left")
    keys = list(dict.fromkeys(key for row in figures.values() for key in row))
    table.add_column("")
    for series in figures:
        table.add_column(series, justify="right")
    for key in keys:
        table.add_row(
            key.replace("_", " "),
            *(f"{row[key]:.4g}" if key in row else "" for row in figures.values()),
        )
    console.print(table)
