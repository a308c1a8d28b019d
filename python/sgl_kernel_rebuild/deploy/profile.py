"""Profiles: what to serve and how, as a TOML file.

::

    [model]        id (a hub name or a folder), revision, served-name
    [server]       SGLang's options by their long names: true is a flag, false leaves it out
    [environment]  variables of the server
    [container]    image, name, port, shm-size
    [test]         what test-api holds the server to

Options that a deployment sets itself (``api-key``, ``host``, ``port``, ``model-path``,
``served-model-name``) are refused in ``[server]``; so is every key that is not known here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sgl_kernel_rebuild.errors import DeployError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Container",
    "Option",
    "Profile",
    "Thresholds",
    "find_profile",
    "load_profile",
    "parse_option",
    "parse_profile",
]

Option = bool | int | float | str

_SET_BY_DEPLOY = {"api-key", "host", "port", "model-path", "model", "served-model-name"}
_NAME = re.compile(r"^[a-z0-9][a-z0-9_.-]*$")
_OPTION = re.compile(r"^[a-z][a-z0-9-]*$")
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


@dataclass(frozen=True)
class Container:
    """The container: image, its name (also the deployment's), the port published on 127.0.0.1."""

    image: str = "sglang:rtx5090-source"
    name: str = "sglang-source"
    port: int = 8000
    shm_size: str = "16g"


@dataclass(frozen=True)
class Thresholds:
    """What ``test-api`` holds a server to; times in seconds, None asks for nothing."""

    concurrency: int = 8
    requests: int = 16
    max_tokens: int = 64
    long_prompt_tokens: int = 4096
    timeout: float = 120.0
    first_token_p95: float | None = None
    request_p95: float | None = None
    min_tokens_per_second: float | None = None


@dataclass(frozen=True)
class Profile:
    """A profile as read; ``server`` maps SGLang's long option names to values."""

    name: str
    model: str
    served_name: str
    revision: str | None = None
    server: Mapping[str, Option] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    container: Container = field(default_factory=Container)
    test: Thresholds = field(default_factory=Thresholds)

    def with_options(self, **options: Option | None) -> Profile:
        """Return the profile with SGLang options replaced; None leaves one as it is, False removes it."""
        chosen = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
        for name in chosen:
            _check_option(name)
        merged = {**self.server, **chosen}
        return replace(self, server={name: value for name, value in merged.items() if value is not False})

    def arguments(self, *, model_path: str, host: str, port: int) -> list[str]:
        """Return SGLang's arguments, without the key."""
        arguments = ["--model-path", model_path, "--served-model-name", self.served_name]
        for name, value in self.server.items():
            if value is True:
                arguments.append(f"--{name}")
            elif value is not False:
                arguments += [f"--{name}", str(value)]
        return [*arguments, "--host", host, "--port", str(port)]


def find_profile(name: str, start: Path | None = None) -> Path:
    """Return the file of a profile given by path, or by name in the nearest ``deploy/profiles``.

    Raises:
        DeployError: no such file; the message lists the names there are.
    """
    path = Path(name)
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise DeployError(f"profile: expected a file, got {name}, which is not there")
    start = (start or Path.cwd()).resolve()
    known: list[str] = []
    for folder in (start, *start.parents):
        profiles = folder / "deploy" / "profiles"
        if profiles.is_dir():
            if (profiles / f"{name}.toml").is_file():
                return profiles / f"{name}.toml"
            known = sorted(file.stem for file in profiles.glob("*.toml"))
            break
    listed = ", ".join(known) if known else "none: there is no deploy/profiles here"
    raise DeployError(f"profile: expected a .toml file or a name (known: {listed}), got {name}")


def load_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        DeployError: the file cannot be read or says what it may not; all its faults are listed.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise DeployError(f"profile: {path.name}: expected TOML, got {err}") from err
    return parse_profile(document, path.stem)


def parse_profile(document: Mapping[str, Any], name: str) -> Profile:
    """Return the profile in a parsed TOML document.

    Raises:
        DeployError: lists every key that is unknown, missing or of another type.
    """
    faults: list[str] = []
    known = {"model", "server", "environment", "container", "test"}
    faults += [f"[{key}]: unknown" for key in document if key not in known]
    tables = {key: _table(document, key, faults) for key in known}

    model = _dataclass_arguments(
        "model", tables["model"], {"id": "str", "revision": "str | None", "served_name": "str"}, faults
    )
    if "id" not in model:
        faults.append("[model] id: expected a hub name or a folder, got nothing")
    for key, value in tables["server"].items():
        if key in _SET_BY_DEPLOY:
            faults.append(f"[server] {key}: set by the deployment, not by a profile")
        elif not _OPTION.match(key):
            faults.append(f"[server] {key}: expected the long name of an SGLang option")
        elif not isinstance(value, (bool, int, float, str)):
            faults.append(f"[server] {key}: expected a bool, number or string, got {value!r}")
    for key, value in tables["environment"].items():
        if not _VARIABLE.match(key) or not isinstance(value, str):
            faults.append(f"[environment] {key}: expected a variable with a string, got {value!r}")
    container = _dataclass_arguments("container", tables["container"], _types(Container), faults)
    test = _dataclass_arguments("test", tables["test"], _types(Thresholds), faults)
    if not _NAME.match(container.get("name", Container.name)):
        faults.append("[container] name: expected lower-case letters, digits, . _ - alone")
    if not 1 <= container.get("port", Container.port) <= 65535:
        faults.append(f"[container] port: expected 1 to 65535, got {container['port']}")
    for key in ("concurrency", "requests", "max_tokens", "long_prompt_tokens", "timeout"):
        if key in test and test[key] <= 0:
            faults.append(f"[test] {key.replace('_', '-')}: expected more than 0, got {test[key]}")
    if faults:
        raise DeployError(f"profile: {name}:\n  " + "\n  ".join(sorted(faults)))
    return Profile(
        name=name,
        model=model["id"],
        served_name=model.get("served_name", model["id"].rstrip("/").rsplit("/", 1)[-1]),
        revision=model.get("revision"),
        server=dict(tables["server"]),
        environment=dict(tables["environment"]),
        container=Container(**container),
        test=Thresholds(**test),
    )


def parse_option(text: str) -> tuple[str, Option]:
    """Return name and value of ``name=value`` as the command line gives it; ``name`` alone is a flag.

    Raises:
        DeployError: the name is no option's or one that the deployment sets.
    """
    name, equals, value = text.partition("=")
    name = name.strip().removeprefix("--").replace("_", "-")
    _check_option(name)
    if not equals:
        return name, True
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value
    return name, parsed if isinstance(parsed, (bool, int, float, str)) else value


def _check_option(name: str) -> None:
    if name in _SET_BY_DEPLOY or not _OPTION.match(name):
        raise DeployError(f"option: {name}: expected one of SGLang that the deployment does not set itself")


def _table(document: Mapping[str, Any], key: str, faults: list[str]) -> Mapping[str, Any]:
    table = document.get(key, {})
    if isinstance(table, Mapping):
        return table
    faults.append(f"[{key}]: expected a table, got {table!r}")
    return {}


def _types(cls: type) -> dict[str, str]:
    return {item.name: str(item.type) for item in fields(cls)}


def _dataclass_arguments(
    table: str, values: Mapping[str, Any], types: Mapping[str, str], faults: list[str]
) -> dict[str, Any]:
    """Return the values under their Python names; what is unknown or of another type becomes a fault."""
    accepted: dict[str, Any] = {}
    kinds: Mapping[str, Sequence[type]] = {"str": [str], "int": [int], "float": [int, float]}
    for key, value in values.items():
        name = key.replace("-", "_")
        expected = types.get(name, "").removesuffix(" | None")
        if "_" in key or not expected:
            faults.append(f"[{table}] {key}: unknown")
        elif isinstance(value, bool) or not isinstance(value, tuple(kinds[expected])):
            faults.append(f"[{table}] {key}: expected {expected}, got {value!r}")
        else:
            accepted[name] = value
    return accepted
