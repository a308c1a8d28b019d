"""The folder of a deployment: its key, what its server is started with, who may change it.

Every file is whole or not there: written under a temporary name, flushed, then moved. The key is made
once, readable by its owner alone. One command at a time changes a deployment; a running local server holds
a lock of its own (:mod:`.local`), so that it is known as long as it lives, whoever started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from sgl_kernel_rebuild.deploy.secret import Secret
from sgl_kernel_rebuild.errors import DeployError

__all__ = ["Deployment", "read_key", "server_pid"]

_NAME = re.compile(r"^[a-z0-9][a-z0-9_.-]{0,62}$")
_KEY = re.compile(r"^[\x21-\x7e]{16,}$")
_PREFIX = ".new-"


class Deployment:
    """A deployment by name. Nothing is written before :meth:`prepare`.

    Raises:
        DeployError: a name that is none.
    """

    def __init__(self, name: str, root: Path | None = None) -> None:
        if not _NAME.match(name):
            raise DeployError(f"deployment: name: expected lower-case letters, digits, . _ -, got {name!r}")
        self.name = name
        root = root or Path(platformdirs.user_state_dir("sgl-kernel-rebuild")) / "deployments"
        self.folder = root.absolute() / name
        self.key_file = self.folder / "api-key"
        self.server_file = self.folder / "server.json"
        self.env_file = self.folder / "compose.env"
        self.record_file = self.folder / "deployment.json"
        self.lock_file = self.folder / "server.lock"
        self.log_file = self.folder / "server.log"
        self.verified_file = self.folder / "verified.json"
        self.cache = self.folder / "cache"

    @contextlib.contextmanager
    def locked(self, timeout: float = 10.0) -> Iterator[None]:
        """Make the folder if need be and hold the deployment against other commands.

        Raises:
            DeployError: another command held it for ``timeout`` seconds.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=timeout, mode=0o600):
                for left_over in self.folder.glob(f"{_PREFIX}*"):
                    left_over.unlink(missing_ok=True)
                yield
        except Timeout as err:
            raise DeployError(
                f"deployment: {self.name}: another command has been changing it for {timeout:g} s\nTry again."
            ) from err
        except PermissionError as err:
            raise DeployError(
                f"deployment: {self.name}: expected a folder that this user may write, got {err}"
            ) from err

    def ensure_key(self) -> Secret:
        """Return the key; make it if there is none. The deployment must be locked."""
        if not self.key_file.exists():
            _write(self.key_file, secrets.token_urlsafe(32) + "\n")
        return read_key(self.key_file)

    def write_server(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Write what :mod:`.serve` reads: SGLang's arguments, without the key, and variables."""
        document = {"arguments": list(arguments), "environment": dict(environment)}
        _write(self.server_file, json.dumps(document, indent=1) + "\n")

    def write_environment(self, values: Mapping[str, str]) -> None:
        """Write compose's variables.

        Raises:
            DeployError: a value that such a file cannot hold.
        """
        for name, value in values.items():
            if "\n" in value or "'" in value:
                raise DeployError(f"compose: {name}: expected no quote and no line break, got {value!r}")
        _write(self.env_file, "".join(f"{name}='{value}'\n" for name, value in values.items()))

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write how the deployment runs: its mode, URL, engine and container."""
        _write(self.record_file, json.dumps(dict(record), indent=1) + "\n")

    def record(self) -> dict[str, Any]:
        """Return what :meth:`write_record` wrote.

        Raises:
            DeployError: nothing is deployed under this name, or the file is damaged.
        """
        record = _read_json(self.record_file)
        if record is None:
            raise DeployError(
                f"deployment: {self.name}: nothing is deployed under this name\n"
                "Start it with: sgl-kernel-rebuild deploy up PROFILE"
            )
        return record

    def forget(self) -> None:
        """Remove what says that it runs; the key and the log stay."""
        for path in (self.record_file, self.env_file, self.server_file):
            path.unlink(missing_ok=True)

    def verified(self) -> dict[str, Any]:
        """Return which weight files were found to be what the hub records; empty where none were."""
        return _read_json(self.verified_file) or {}

    def write_verified(self, files: Mapping[str, Any]) -> None:
        _write(self.verified_file, json.dumps(dict(files), indent=1) + "\n")


def read_key(path: Path) -> Secret:
    """Return the key in a file.

    Raises:
        DeployError: no file, a file that others may read, or no key in it.
    """
    try:
        mode = path.stat().st_mode & 0o777
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise DeployError(f"key: expected a readable file with the API key, got {err}") from err
    if mode & 0o077:
        raise DeployError(
            f"key: {path}: expected a file that only its owner may read, got mode {mode:03o}\n"
            f"Correct it with: chmod 600 {path}"
        )
    if not _KEY.match(text):
        raise DeployError(f"key: {path}: expected at least 16 printable characters without spaces")
    return Secret(text)


def server_pid(deployment: Deployment) -> int | None:
    """Return the process of the local server, None where none runs, 0 before it has written its number.

    The server holds the lock of ``server.lock`` as long as it lives.
    """
    try:
        with deployment.lock_file.open("r", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0)
    except FileNotFoundError:
        pass
    return None


def _write(path: Path, text: str) -> None:
    """Put a file in place whole, readable by its owner alone."""
    descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)  # mode 600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        raise DeployError(f"deployment: {path}: expected JSON, got {err}\nRemove the file.") from err
    if not isinstance(document, dict):
        raise DeployError(f"deployment: {path}: expected a JSON object\nRemove the file.")
    return document
