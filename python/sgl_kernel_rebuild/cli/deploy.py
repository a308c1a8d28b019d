"""``sgl-kernel-rebuild deploy``: plan, start, watch and stop a server."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from sgl_kernel_rebuild.deploy.memory import Plan
    from sgl_kernel_rebuild.deploy.profile import Profile
    from sgl_kernel_rebuild.deploy.state import Deployment

__all__ = ["deploy", "open_deployment"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_MODES = ("compose", "run", "local")


@click.group(epilog="Example: sgl-kernel-rebuild deploy up qwen3-32b-awq-rtx5090")
def deploy() -> None:
    """Serve a model with SGLang: in a container by compose or run, or as a process of this machine."""


def _options_of_a_profile(command: _Command) -> _Command:
    """Add what chooses a profile and changes it."""
    for option in reversed(
        (
            click.argument("profile"),
            click.option("--model", help="Folder or hub name in place of the profile's."),
            click.option("--mem-fraction-static", type=click.FloatRange(0, 1, min_open=True, max_open=True)),
            click.option("--max-total-tokens", type=click.IntRange(1)),
            click.option("--context-length", type=click.IntRange(1)),
            click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help="Any SGLang option."),
            click.option("--gpu-memory", metavar="SIZE", help="Plan for 32GiB, say, not for the GPU."),
        )
    ):
        command = option(command)
    return command


@deploy.command(epilog="Example: sgl-kernel-rebuild deploy up qwen3-32b-awq-rtx5090")
@_options_of_a_profile
@click.option("--name", help="Name of the deployment and its container; the profile's by default.")
@click.option("--mode", type=click.Choice(_MODES), default="compose", show_default=True)
@click.option(
    "--engine", type=click.Choice(("docker", "podman")), help="By default the one that is installed."
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port on 127.0.0.1; the profile's by default.")
@click.option("--no-plan", is_flag=True, help="Start without planning the memory.")
@click.option("--unverified", is_flag=True, help="Start with weights that no record vouches for.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it answers.")
@click.option("--timeout", default=1800.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--dry-run", is_flag=True, help="Print what would be run; write and start nothing.")
@click.option("--json", "is_json", is_flag=True, help="Print the result as JSON.")
def up(
    profile: str,
    name: str | None,
    mode: str,
    engine: str | None,
    port: int | None,
    no_plan: bool,
    unverified: bool,
    no_wait: bool,
    timeout: float,
    dry_run: bool,
    is_json: bool,
    gpu_memory: str | None,
    **overrides: Any,
) -> None:
    """Start a server and wait until it answers.

    PROFILE is a name in deploy/profiles or a .toml file. The memory is planned first, the weights are held
    against the hashes that the hub records, and an API key is made on the first start, in a file that only
    you can read: never on a command line, in a log or in the image.

    Exit code 9: it does not fit, is not what it should be, or ended; the message holds its own error.
    """
    from sgl_kernel_rebuild.deploy import service
    from sgl_kernel_rebuild.deploy.memory import parse_size
    from sgl_kernel_rebuild.deploy.state import Deployment, read_key

    chosen = service.with_port(_load(profile, overrides), port)
    deployment = Deployment(name or chosen.container.name)
    request = service.Request(
        profile=chosen,
        deployment=deployment,
        mode=mode,
        engine=engine,
        memory=parse_size(gpu_memory) if gpu_memory else None,
        has_plan=not no_plan,
        is_verified=not unverified,
        is_dry=dry_run,
    )
    plans: list[Plan] = []

    def on_plan(plan: Plan) -> None:
        plans.append(plan)
        if not is_json:
            _print_plan(plan)

    def show(command: str) -> None:
        click.echo(f"$ {command}", err=is_json)

    with _Progress() as progress:
        record = service.up(request, show=show, on_plan=on_plan, on_hash=progress.hashing)
        models: list[str] = []
        if not dry_run and not no_wait:
            models = _wait(deployment, record, read_key(deployment.key_file), progress, timeout)
    result = {
        "name": deployment.name,
        **record,
        "key_file": str(deployment.key_file),
        "models": models,
        "plan": plans[0].to_json() if plans else None,
    }
    if is_json:
        click.echo(json.dumps(result, indent=1))
    elif not dry_run:
        what = f"serves {', '.join(models)}" if models else "is starting"
        click.echo(f"{deployment.name} {what} at {record['url']}/v1, key in {deployment.key_file}")


@deploy.command(epilog="Example: sgl-kernel-rebuild deploy plan qwen3-32b-awq-rtx5090 --gpu-memory 24GiB")
@_options_of_a_profile
@click.option("--json", "is_json", is_flag=True, help="Print the plan as JSON.")
def plan(profile: str, gpu_memory: str | None, is_json: bool, **overrides: Any) -> None:
    """Say whether a profile fits a GPU, and which nearest setting does. Starts nothing.

    Exit code 9: it does not fit.
    """
    from sgl_kernel_rebuild.deploy import service
    from sgl_kernel_rebuild.deploy.memory import parse_size
    from sgl_kernel_rebuild.deploy.model import find_model
    from sgl_kernel_rebuild.errors import DeployError

    chosen = _load(profile, overrides)
    memory = parse_size(gpu_memory) if gpu_memory else None
    made = service.plan(chosen, find_model(chosen.model, chosen.revision), memory)
    if is_json:
        click.echo(json.dumps(made.to_json(), indent=1))
    else:
        _print_plan(made)
    if not made.fits:
        raise DeployError(f"plan: {made.problem}\n{made.advice}")


@deploy.command(epilog="Example: sgl-kernel-rebuild deploy down")
@click.argument("name", required=False)
@click.option("--dry-run", is_flag=True, help="Print what would be run.")
def down(name: str | None, dry_run: bool) -> None:
    """Stop a deployment. Its key, log and compile cache stay."""
    from sgl_kernel_rebuild.deploy import service

    deployment = open_deployment(name)
    was_running = service.down(deployment, show=lambda text: click.echo(f"$ {text}"), is_dry=dry_run)
    if not dry_run:
        click.echo(f"{deployment.name} {'is stopped' if was_running else 'was not running'}")


@deploy.command(epilog="Example: sgl-kernel-rebuild deploy logs --follow")
@click.argument("name", required=False)
@click.option("--lines", "-n", default=200, show_default=True, type=click.IntRange(1))
@click.option("--follow", "-f", is_flag=True, help="Go on until interrupted.")
@click.option("--dry-run", is_flag=True, help="Print what would be run.")
def logs(name: str | None, lines: int, follow: bool, dry_run: bool) -> None:
    """Show the server's log."""
    from sgl_kernel_rebuild.deploy import service

    command = service.logs_command(open_deployment(name), lines, is_followed=follow)
    click.echo(f"$ {shlex.join(command)}", err=True)
    if not dry_run:
        sys.exit(subprocess.run(command, check=False).returncode)


@deploy.command(epilog="Example: sgl-kernel-rebuild deploy status --json")
@click.argument("name", required=False)
@click.option("--json", "is_json", is_flag=True, help="Print the report as JSON.")
def status(name: str | None, is_json: bool) -> None:
    """Say whether a deployment runs and answers. Exit code 9: it does not."""
    from sgl_kernel_rebuild.deploy import service
    from sgl_kernel_rebuild.errors import DeployError

    report = service.status(open_deployment(name))
    if is_json:
        click.echo(json.dumps(report, indent=1))
    else:
        for key in ("name", "mode", "image", "url", "state", "healthy", "models", "key_file"):
            if key in report:
                value = report[key]
                click.echo(f"{key:8} {', '.join(value) if isinstance(value, list) else value}")
    if not report["healthy"]:
        sys.exit(DeployError.exit_code)


def open_deployment(name: str | None) -> Deployment:
    """Return the deployment of a name, or the only one there is.

    Raises:
        DeployError: there is none, or there are several.
    """
    from sgl_kernel_rebuild.deploy.state import Deployment
    from sgl_kernel_rebuild.errors import DeployError

    if name is not None:
        return Deployment(name)
    root = Deployment("any").folder.parent
    there = sorted(path.parent.name for path in root.glob("*/deployment.json"))
    if len(there) != 1:
        raise DeployError(
            f"deployment: expected a name, there are {len(there)}: {', '.join(there)}"
            if there
            else "deployment: nothing is deployed\nStart it with: sgl-kernel-rebuild deploy up PROFILE"
        )
    return Deployment(there[0])


def _load(profile: str, overrides: dict[str, Any]) -> Profile:
    from sgl_kernel_rebuild.deploy.profile import find_profile, load_profile, parse_option

    chosen = load_profile(find_profile(profile))
    model = overrides.pop("model", None)
    extra = dict(parse_option(text) for text in overrides.pop("settings", ()))
    if model is not None:
        chosen = dataclasses.replace(chosen, model=model, revision=None)
    return chosen.with_options(**extra).with_options(**overrides)


def _wait(
    deployment: Deployment, record: dict[str, Any], key: str, progress: _Progress, timeout: float
) -> list[str]:
    from sgl_kernel_rebuild.deploy import service
    from sgl_kernel_rebuild.deploy.ready import wait_until_ready
    from sgl_kernel_rebuild.redact import make_redactor

    redact = make_redactor([key])
    return wait_until_ready(
        record["url"],
        key,
        is_alive=lambda: service.is_alive(deployment, record),
        tail=lambda lines: redact(service.tail(deployment, record, lines)),
        progress=progress.waiting,
        timeout=timeout,
    )


class _Progress:
    """One line that says what is going on, on a terminal alone."""

    def __init__(self) -> None:
        from rich.console import Console

        self._status = Console(stderr=True).status("")
        self._is_shown = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def hashing(self, name: str, done: int, size: int) -> None:
        self._say(f"checking {name}: {done / 1e9:.1f} of {size / 1e9:.1f} GB")

    def waiting(self, seconds: float, line: str) -> None:
        self._say(f"{seconds:.0f} s  {line[:100]}")

    def _say(self, text: str) -> None:
        from rich.markup import escape

        if self._is_shown:
            self._status.update(escape(text))
            self._status.start()


def _print_plan(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    from sgl_kernel_rebuild.deploy.memory import GIB

    table = Table(title=f"memory of the GPU: {plan.memory / GIB:.2f} GiB", title_justify="left")
    table.add_column("what")
    table.add_column("GiB", justify="right")
    table.add_column("how")
    for what, size, how in plan.rows:
        table.add_row(what, f"{size / GIB:.2f}", how)
    console = Console()
    (console if console.is_terminal else Console(width=100)).print(table)
