"""A server in a container: what to say to docker or podman, by compose or plainly. The commands are pure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from sgl_kernel_rebuild.deploy.model import Model
from sgl_kernel_rebuild.deploy.profile import Profile
from sgl_kernel_rebuild.deploy.state import Deployment
from sgl_kernel_rebuild.errors import DeployError, HostError

__all__ = [
    "COMPOSE_FILE",
    "build_command",
    "compose_command",
    "compose_environment",
    "find_engine",
    "find_folder",
    "model_path",
    "output",
    "owner",
    "run_command",
    "state",
    "stop_commands",
]

COMPOSE_FILE = "docker-compose.sglang-source.yml"
DOCKERFILE = "Dockerfile.sglang-source-build"

_MODEL = "/model"
_SERVER = "/run/sglang/server.json"
_KEY = "/run/secrets/api_key"
_PORT = 8000
# The image's own user, for a deployer who is root.
_IMAGE_USER = 10001
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def find_engine(name: str | None = None, *, is_needed: bool = True) -> str:
    """Return ``docker`` or ``podman``, the one named or the first that is installed.

    Where it is not needed, to show what would be run, one that is missing will do.

    Raises:
        HostError: it is needed and not installed.
    """
    for engine in (name,) if name else ("docker", "podman"):
        if shutil.which(engine):
            return engine
    if not is_needed:
        return name or "docker"
    if name:
        raise HostError(f"container: expected {name} on the PATH\nInstall it, or name another with --engine.")
    raise HostError(
        "container: expected docker or podman on the PATH, got neither\n"
        "Install one, or run without a container: --mode local"
    )


def find_folder(start: Path | None = None) -> Path:
    """Return the nearest ``deploy`` folder that holds the compose file.

    Raises:
        DeployError: there is none here or above.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "deploy" / COMPOSE_FILE).is_file():
            return folder / "deploy"
    raise DeployError(
        f"container: expected deploy/{COMPOSE_FILE} here or above, got nothing\nRun this in a checkout."
    )


def owner() -> tuple[int, int]:
    """Return the user and group that the server runs as: the caller's, or the image's for root."""
    return (os.getuid(), os.getgid()) if os.getuid() != 0 else (_IMAGE_USER, _IMAGE_USER)


def model_path(model: Model) -> str:
    """Return the model's folder inside the container."""
    inside = model.folder.relative_to(model.mount).as_posix()
    return _MODEL if inside == "." else f"{_MODEL}/{inside}"


def compose_environment(
    deployment: Deployment, profile: Profile, model: Model, engine: str
) -> dict[str, str]:
    """Return the variables of the compose file; no secret is among them, only the key's file."""
    user, group = owner()
    return {
        "SGLANG_IMAGE": profile.container.image,
        "SGLANG_NAME": deployment.name,
        "SGLANG_PORT": str(profile.container.port),
        "SGLANG_SHM_SIZE": profile.container.shm_size,
        "SGLANG_MODEL": str(model.mount),
        "SGLANG_SERVER_FILE": str(deployment.server_file),
        "SGLANG_KEY_FILE": str(deployment.key_file),
        "SGLANG_CACHE": str(deployment.cache),
        "SGLANG_USER": f"{user}:{group}",
        "SGLANG_USERNS": "keep-id" if engine == "podman" and os.getuid() != 0 else "",
    }


def compose_command(deployment: Deployment, engine: str, folder: Path, *verb: str) -> list[str]:
    """Return a compose command of a deployment; podman before 4.7 has no ``compose`` of its own."""
    has_own = engine != "podman" or shutil.which("podman-compose") is None
    return [
        *((engine, "compose") if has_own else ("podman-compose",)),
        *("--project-name", deployment.name),
        *("--env-file", str(deployment.env_file), "--file", str(folder / COMPOSE_FILE)),
        *verb,
    ]


def run_command(deployment: Deployment, profile: Profile, model: Model, engine: str) -> list[str]:
    """Return the ``run`` that starts what the compose file describes."""
    user, group = owner()
    command = [
        *(engine, "run", "--detach", "--name", deployment.name),
        *("--restart", "unless-stopped", "--user", f"{user}:{group}"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--shm-size", profile.container.shm_size),
        *("--publish", f"127.0.0.1:{profile.container.port}:{_PORT}"),
        *("--volume", f"{model.mount}:{_MODEL}:ro"),
        *("--volume", f"{deployment.server_file}:{_SERVER}:ro"),
        *("--volume", f"{deployment.key_file}:{_KEY}:ro"),
        *("--volume", f"{deployment.cache}:/cache"),
    ]
    if engine == "podman":
        command += ["--device", "nvidia.com/gpu=all"]
        if os.getuid() != 0:
            command += ["--userns", "keep-id"]
    else:
        command += ["--gpus", "all"]
    return [*command, profile.container.image]


def stop_commands(deployment: Deployment, engine: str) -> list[list[str]]:
    """Return what ends and removes the container of :func:`run_command`."""
    return [[engine, "stop", "-t", "30", deployment.name], [engine, "rm", "--force", deployment.name]]


def build_command(
    engine: str,
    folder: Path,
    *,
    tag: str,
    arguments: Mapping[str, str],
    secrets: Mapping[str, Path],
    labels: Mapping[str, str],
    environment: Mapping[str, str],
    options: Sequence[str] = (),
) -> list[str]:
    """Return the build of the image.

    Proxy variables are passed by name: the engine takes their values from the environment and keeps them
    out of the image's history. ``secrets`` are files (a certificate authority, a pip.conf).
    """
    command = [engine, "build", "--file", str(folder / DOCKERFILE), "--tag", tag]
    if engine == "podman":
        command += ["--format", "docker"]  # OCI's own format knows no health check
    for name, value in sorted(arguments.items()):
        command += ["--build-arg", f"{name}={value}"]
    for name in _PROXIES:
        if environment.get(name):
            command += ["--build-arg", name]
    for name, path in sorted(secrets.items()):
        command += ["--secret", f"id={name},src={path}"]
    for name, value in sorted(labels.items()):
        command += ["--label", f"{name}={value}"]
    return [*command, *options, str(folder.parent)]


def hand_over(deployment: Deployment) -> None:
    """Make the key, the server file and the cache readable for the container's user.

    They are the caller's and stay so; for root, who owns no container user, they become the image's.
    """
    deployment.cache.mkdir(mode=0o700, exist_ok=True)
    if os.getuid() == 0:
        for path in (deployment.cache, deployment.key_file, deployment.server_file):
            os.chown(path, *owner())


def state(engine: str, name: str) -> str | None:
    """Return a container's state (``running``, ``exited`` …), None where there is none of the name."""
    done = subprocess.run([engine, "container", "inspect", name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    try:
        return str(json.loads(done.stdout)[0]["State"]["Status"])
    except (ValueError, LookupError, TypeError) as err:
        raise DeployError(f"container: {engine} inspect: expected a state, got {done.stdout[:200]}") from err


def output(engine: str, name: str, lines: int) -> str:
    """Return the end of a container's log."""
    done = subprocess.run(
        [engine, "logs", "--tail", str(lines), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return done.stdout
