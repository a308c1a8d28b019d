"""A server as a process of this machine, without a container."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from sgl_kernel_rebuild.deploy.state import Deployment, server_pid
from sgl_kernel_rebuild.errors import DeployError

__all__ = ["command", "is_running", "start", "stop", "tail"]

_POLL = 0.1


def command(deployment: Deployment, python: str = sys.executable) -> list[str]:
    """Return what starts the server."""
    module = "sgl_kernel_rebuild.deploy.serve"
    files = ["--server", deployment.server_file, "--key", deployment.key_file, "--pid", deployment.lock_file]
    return [python, "-m", module, *map(str, files)]


def start(deployment: Deployment, arguments: list[str]) -> None:
    """Start the server in a session of its own, its output in the deployment's log.

    The deployment must be locked, and no server may run.

    Raises:
        DeployError: one runs already.
    """
    if is_running(deployment):
        raise DeployError(
            f"deployment: {deployment.name}: it runs already\n"
            f"Stop it with: sgl-kernel-rebuild deploy down {deployment.name}"
        )
    with _open_empty(deployment.lock_file) as lock, _open_empty(deployment.log_file) as log:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a reader of the lock holds it for an instant
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # With the open file it inherits the lock, and so is known from its first instant on.
            pass_fds=[lock.fileno()],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    # Nobody waits for it, on purpose; subprocess would warn.
    process.returncode = 0


def is_running(deployment: Deployment) -> bool:
    return server_pid(deployment) is not None


def stop(deployment: Deployment, timeout: float = 30.0) -> bool:
    """End the server and its workers, by force after ``timeout`` seconds; False where none ran."""
    while (pid := server_pid(deployment)) == 0:  # it has yet to write its number
        time.sleep(_POLL)
    if pid is None:
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal(pid, number)
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if not is_running(deployment):
                _signal(pid, signal.SIGKILL)  # workers that outlived it
                return True
            time.sleep(_POLL)
    raise DeployError(f"deployment: {deployment.name}: process {pid} does not end")


def tail(deployment: Deployment, lines: int) -> str:
    """Return the end of the log, empty where there is none."""
    try:
        text = deployment.log_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _open_empty(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _signal(pid: int, number: signal.Signals) -> None:
    """Signal a server's process group, which :func:`start` made its own."""
    if pid <= 1:
        return
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError as err:
        raise DeployError(f"deployment: process {pid}: expected a server of this user, got {err}") from err
