"""A deployment from its request to its end: what ``deploy up``, ``down`` and ``status`` do.

Nothing prints here: what is run goes to the ``show`` of the caller, who is told before it happens.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sgl_kernel_rebuild.deploy import container, local, ready
from sgl_kernel_rebuild.deploy.memory import MIB, ModelShape, Plan, Settings, make_plan
from sgl_kernel_rebuild.deploy.model import Model, Progress, find_model, verify
from sgl_kernel_rebuild.deploy.profile import Profile
from sgl_kernel_rebuild.deploy.state import Deployment, read_key
from sgl_kernel_rebuild.errors import DeployError, HostError

__all__ = ["MODES", "Gpu", "Request", "down", "find_gpu", "logs_command", "plan", "status", "up"]

MODES = ("compose", "run", "local")

Show = Callable[[str], None]


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, its memory and what of it is free, in bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Request:
    """What to start and how; ``memory`` in bytes stands in for a GPU that is asked, None asks it."""

    profile: Profile
    deployment: Deployment
    mode: str = "compose"
    engine: str | None = None
    memory: int | None = None
    has_plan: bool = True
    is_verified: bool = True
    is_dry: bool = False

    @property
    def has_weights(self) -> bool:
        return self.profile.server.get("load-format") != "dummy"


def find_gpu(environment: Mapping[str, str] = os.environ) -> Gpu:
    """Return the first GPU that ``CUDA_VISIBLE_DEVICES`` lets a server use.

    Raises:
        HostError: nvidia-smi is missing or finds none.
    """
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if visible and visible != "all":
        command.append(f"--id={visible}")
    hint = "Name the memory with --gpu-memory 32GiB, or skip the plan with --no-plan."
    if shutil.which(command[0]) is None:
        raise HostError(f"gpu: expected nvidia-smi on the PATH, got nothing\n{hint}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        name, total, free = done.stdout.splitlines()[0].rsplit(",", 2)
        return Gpu(name.strip(), int(total) * MIB, int(free) * MIB)
    except (IndexError, ValueError) as err:
        answer = (done.stderr or done.stdout).strip()
        raise HostError(f"gpu: expected a GPU from nvidia-smi, got: {answer}\n{hint}") from err


def plan(profile: Profile, model: Model, memory: int | None) -> Plan:
    """Return the memory plan of a profile for ``memory`` free bytes, or for what the server's GPU has.

    Raises:
        DeployError: the model or a setting is none that can be planned.
        HostError: there is no GPU to ask.
    """
    if memory is None:
        memory = find_gpu({**os.environ, **profile.environment}).free
    shape = ModelShape.from_config(model.config())
    settings = Settings.from_options(profile.server, shape)
    is_dummy = profile.server.get("load-format") == "dummy"
    return make_plan(shape, settings, memory, weights=None if is_dummy else model.weight_bytes)


def up(request: Request, *, show: Show, on_plan: Callable[[Plan], None], on_hash: Progress) -> dict[str, Any]:
    """Plan, check, write and start a deployment; return its record. It is not waited for.

    A dry run shows the commands and writes nothing.

    Raises:
        DeployError: it does not fit, a weight file is not what the hub records, the port is taken, a server
            of this name runs, or the start failed.
        HostError: no GPU, no container engine, no model.
    """
    profile, deployment = request.profile, request.deployment
    model = _find(request)
    if request.has_plan and (model.folder / "config.json").exists():
        made = plan(profile, model, request.memory)
        on_plan(made)
        if not made.fits:
            raise DeployError(f"plan: {made.problem}\n{made.advice}")
    command, record = _command(request, model)
    if request.is_dry:
        show(shlex.join(command))
        return record
    with deployment.locked():
        _refuse_if_running(request)
        _check_port(profile.container.port)
        if request.is_verified and request.has_weights:
            deployment.write_verified(verify(model, deployment.verified(), on_hash))
        deployment.ensure_key()
        is_local = request.mode == "local"
        deployment.write_server(
            profile.arguments(
                model_path=str(model.folder) if is_local else container.model_path(model),
                host="127.0.0.1" if is_local else "0.0.0.0",
                port=profile.container.port if is_local else 8000,
            ),
            profile.environment,
        )
        deployment.write_record(record)
        try:
            _start(request, model, command, record, show)
        except BaseException:
            with contextlib.suppress(DeployError):
                _stop(deployment, record)
            deployment.forget()
            raise
    return record


def down(deployment: Deployment, *, show: Show, is_dry: bool = False) -> bool:
    """Stop a deployment; False where nothing ran. Key, log and cache stay.

    Raises:
        DeployError: nothing is deployed under the name, or it does not stop.
    """
    record = deployment.record()
    if record["mode"] == "local":
        show(f"# SIGTERM to the server's process group, SIGKILL after 30 s ({deployment.name})")
    for command in _stop_commands(deployment, record):
        show(shlex.join(command))
    if is_dry:
        return True
    with deployment.locked():
        was_running = _stop(deployment, record)
        deployment.forget()
    return was_running


def status(deployment: Deployment) -> dict[str, Any]:
    """Return mode, URL, state (running, stopped, …) and, where it is healthy, the served models."""
    record = deployment.record()
    if record["mode"] == "local":
        state = "running" if local.is_running(deployment) else "stopped"
    else:
        state = container.state(record["engine"], deployment.name) or "stopped"
    report = {"name": deployment.name, **record, "state": state, "healthy": False, "models": []}
    report["key_file"] = str(deployment.key_file)
    if state == "running" and ready.is_healthy(record["url"]):
        report |= {
            "healthy": True,
            "models": ready.served_models(record["url"], read_key(deployment.key_file)),
        }
    return report


def is_alive(deployment: Deployment, record: dict[str, Any]) -> bool:
    """Say whether the server, or its container, still runs."""
    if record["mode"] == "local":
        return local.is_running(deployment)
    return container.state(record["engine"], deployment.name) in ("running", "created", "starting")


def tail(deployment: Deployment, record: dict[str, Any], lines: int) -> str:
    """Return the end of the server's log."""
    if record["mode"] == "local":
        return local.tail(deployment, lines)
    return container.output(record["engine"], deployment.name, lines)


def logs_command(deployment: Deployment, lines: int, *, is_followed: bool) -> list[str]:
    """Return what shows the log."""
    record = deployment.record()
    if record["mode"] == "local":
        return ["tail", "-n", str(lines), *(["-F"] if is_followed else []), str(deployment.log_file)]
    follow = ["--follow"] if is_followed else []
    return [record["engine"], "logs", "--tail", str(lines), *follow, deployment.name]


def _find(request: Request) -> Model:
    try:
        return find_model(request.profile.model, request.profile.revision)
    except HostError:
        if not request.is_dry:
            raise
        # What would be run can be shown without the model.
        folder = Path(request.profile.model)
        return Model(folder, folder)


def _command(request: Request, model: Model) -> tuple[list[str], dict[str, Any]]:
    """Return what starts the deployment and its record."""
    profile, deployment = request.profile, request.deployment
    record: dict[str, Any] = {
        "mode": request.mode,
        "profile": profile.name,
        "served_name": profile.served_name,
        "test": asdict(profile.test),
        "url": f"http://127.0.0.1:{profile.container.port}",
    }
    if request.mode == "local":
        return local.command(deployment), record
    engine = container.find_engine(request.engine, is_needed=not request.is_dry)
    record |= {"engine": engine, "image": profile.container.image}
    if request.mode == "run":
        return container.run_command(deployment, profile, model, engine), record
    folder = container.find_folder()
    record["compose_folder"] = str(folder)
    return container.compose_command(deployment, engine, folder, "up", "--detach"), record


def _start(request: Request, model: Model, command: list[str], record: dict[str, Any], show: Show) -> None:
    deployment = request.deployment
    show(shlex.join(command))
    if request.mode == "local":
        local.start(deployment, command)
        return
    container.hand_over(deployment)
    if request.mode == "compose":
        deployment.write_environment(
            container.compose_environment(deployment, request.profile, model, record["engine"])
        )
    _execute(command)


def _stop(deployment: Deployment, record: dict[str, Any]) -> bool:
    """Stop what runs; False where nothing did."""
    if record["mode"] == "local":
        return local.stop(deployment)
    if container.state(record["engine"], deployment.name) is None:
        return False
    for command in _stop_commands(deployment, record):
        _execute(command)
    return True


def _stop_commands(deployment: Deployment, record: dict[str, Any]) -> list[list[str]]:
    if record["mode"] == "local":
        return []
    if record["mode"] == "run":
        return container.stop_commands(deployment, record["engine"])
    folder = Path(record["compose_folder"])
    return [container.compose_command(deployment, record["engine"], folder, "down", "--timeout", "30")]


def _refuse_if_running(request: Request) -> None:
    deployment = request.deployment
    is_local = local.is_running(deployment)
    engine = request.engine or next(filter(shutil.which, ("docker", "podman")), None)
    is_container = request.mode != "local" and engine and container.state(engine, deployment.name) is not None
    if is_local or is_container:
        raise DeployError(
            f"deployment: {deployment.name}: it is there already\n"
            f"Stop it with: sgl-kernel-rebuild deploy down {deployment.name}"
        )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as err:
            raise DeployError(
                f"port: expected 127.0.0.1:{port} to be free, got {err.strerror}\nChoose another with --port."
            ) from err


def _execute(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        hint = f"\nWhere {command[0]} has no compose: --mode run" if command[1] == "compose" else ""
        raise DeployError(
            f"{command[0]}: expected exit code 0, got {done.returncode}:\n{done.stdout.strip()[-2000:]}{hint}"
        )


def with_port(profile: Profile, port: int | None) -> Profile:
    """Return the profile with another port; None leaves it."""
    return profile if port is None else replace(profile, container=replace(profile.container, port=port))
