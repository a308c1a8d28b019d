"""The Python API of a package, read from its source, held against a snapshot of the published one.

A snapshot records signatures only: which module has which name, parameters with kinds and defaults, the
public members of classes. ``python -m sgl_kernel_rebuild.wheel.api WHEEL OUTPUT`` makes one.
"""

from __future__ import annotations

import ast
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import griffe

from sgl_kernel_rebuild.errors import BinaryError

from .archive import Wheel, open_wheel
from .violation import Violation

__all__ = ["SCHEMA", "ApiReport", "check_api", "load_snapshot", "read_api"]

SCHEMA = 1
_CHECK = "api"
_PACKAGE = "sgl_kernel"
_SNAPSHOT = "sgl_kernel-0.3.7.api.json"
_NOT_PROVIDED = "not_provided"
_VARIADIC = ("variadic positional", "variadic keyword")

# module -> name -> a definition, or, for a name that another module defines, that definition's path
Api = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ApiReport:
    """How much of the published API is there.

    ``provided`` and ``not_provided`` hold the paths of published definitions; ``additions`` the parameters
    that we have beyond the published ones, all optional.
    """

    version: str
    provided: tuple[str, ...]
    not_provided: tuple[str, ...]
    absent: tuple[str, ...]
    additions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON types; ``schema`` changes when the form does."""
        return {
            "schema": SCHEMA,
            "compared_with": self.version,
            "counts": {
                "provided": len(self.provided),
                "not_provided": len(self.not_provided),
                "absent": len(self.absent),
            },
            "provided": list(self.provided),
            "not_provided": list(self.not_provided),
            "absent": list(self.absent),
            "additional_parameters": list(self.additions),
        }


def load_snapshot() -> dict[str, Any]:
    """Return the snapshot of the published sgl-kernel 0.3.7."""
    text = (resources.files(__package__) / "data" / _SNAPSHOT).read_text(encoding="utf-8")
    snapshot: dict[str, Any] = json.loads(text)
    return snapshot


def read_api(wheel: Wheel) -> Api:
    """Return the public functions, classes and attributes of the package in a wheel, without importing it.

    Raises:
        BinaryError: the source does not parse.
    """
    with _sources(wheel) as folder:
        try:
            root = griffe.load(
                _PACKAGE,
                search_paths=[folder],
                allow_inspection=False,
                try_relative_path=False,
                resolve_aliases=True,
                resolve_implicit=True,
                resolve_external=False,
            )
            return dict(_modules(root))
        except Exception as err:  # griffe passes on whatever it meets while it reads
            raise BinaryError(
                f"api: {wheel.path}: {type(err).__name__}: {err}\nCorrect the package's source."
            ) from err


def check_api(wheel: Wheel, snapshot: dict[str, Any] | None = None) -> tuple[ApiReport, list[Violation]]:
    """Compare the package in ``wheel`` with ``snapshot`` (default: the published 0.3.7).

    Every published path must exist with the same parameters in the same order, of the same kind, with the
    same defaults; further parameters must be optional. A definition that is decorated with
    ``not_provided`` counts apart.
    """
    snapshot = snapshot or load_snapshot()
    published: Api = snapshot["modules"]
    ours = read_api(wheel)
    absent: set[str] = set()
    provided: set[str] = set()
    not_provided: set[str] = set()
    additions: set[str] = set()
    violations = []
    for module, names in published.items():
        for name, entry in names.items():
            path = f"{module}.{name}"
            theirs, mine = _resolve(published, entry), _resolve(ours, ours.get(module, {}).get(name))
            if mine is None or theirs is None:
                absent.add(path)
                violations.append(Violation(_CHECK, path, "expected the published name, got none"))
                continue
            broken, extra = _compare(theirs, mine)
            violations += [Violation(_CHECK, path, message) for message in broken]
            additions |= {f"{path}({parameter})" for parameter in extra}
            if "alias" not in entry:
                (not_provided if mine.get("not_provided") else provided).add(path)
    return (
        ApiReport(
            version=str(snapshot["version"]),
            provided=tuple(sorted(provided)),
            not_provided=tuple(sorted(not_provided)),
            absent=tuple(sorted(absent)),
            additions=tuple(sorted(additions)),
        ),
        sorted(violations),
    )


@contextlib.contextmanager
def _sources(wheel: Wheel) -> Iterator[Path]:
    """Write the package's Python files, without the branches for ROCm builds, to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="sglk-api-") as folder:
        names = [name for name in wheel.members if name.startswith(f"{_PACKAGE}/") and name.endswith(".py")]
        if f"{_PACKAGE}/__init__.py" not in names:
            raise BinaryError(
                f"api: {wheel.path}: expected {_PACKAGE}/__init__.py, got none\nName a wheel of sgl-kernel."
            )
        for name in names:
            try:
                tree = _CudaOnly().visit(ast.parse(wheel.read_text(name)))
                text = ast.unparse(ast.fix_missing_locations(tree))
            except (SyntaxError, ValueError, RecursionError) as err:
                raise BinaryError(f"api: {wheel.path}: {name}: {err}\nCorrect the package's source.") from err
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        yield Path(folder)


class _CudaOnly(ast.NodeTransformer):
    """Replaces ``if torch.version.hip is not None: a else: b`` by b."""

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        if ast.unparse(node.test) == "torch.version.hip is not None":
            return node.orelse
        return node


def _modules(module: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    names = {}
    for name, member in module.members.items():
        if not member.is_alias and member.is_module:  # private ones too: public names may be defined there
            yield from _modules(member)
        elif not name.startswith("_") and (entry := _entry(module, member)) is not None:
            names[name] = entry
    yield module.path, dict(sorted(names.items()))


def _entry(module: Any, member: Any) -> dict[str, Any] | None:
    """Return the description of a module's member; None for what is no part of the API."""
    if member.is_alias:
        try:
            member = member.final_target
        except Exception:  # an alias of another package, which is not looked at
            return None
        if member.is_module or not member.path.startswith(f"{_PACKAGE}."):
            return None
        if not member.is_attribute:
            return {"alias": member.path}
        module = member.parent
    if member.is_function:
        return _function(member)
    if member.is_class:
        return _class(member)
    # other_name = name: two names of one function
    value = module.members.get(str(member.value))
    return {"alias": value.path} if value is not None and not value.is_alias and value.is_function else None


def _function(function: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": "function", "parameters": _parameters(function)}
    if any(_NOT_PROVIDED in str(decorator.value).split(".") for decorator in function.decorators):
        entry["not_provided"] = True
    return entry


def _class(described: Any) -> dict[str, Any]:
    members = {}
    for name, member in described.members.items():
        if name.startswith("_"):
            continue
        if member.is_function:
            members[name] = _function(member)
        elif member.is_attribute and {"class-attribute", "property"} & member.labels:
            members[name] = {"kind": "attribute"}
    parameters = [parameter for parameter in _parameters(described) if parameter["name"] != "self"]
    return {"kind": "class", "parameters": parameters, "members": dict(sorted(members.items()))}


def _parameters(described: Any) -> list[dict[str, str]]:
    found = []
    for parameter in described.parameters:
        entry = {"name": parameter.name, "kind": parameter.kind.value}
        if parameter.default is not None and parameter.kind.value not in _VARIADIC:
            entry["default"] = str(parameter.default)
        found.append(entry)
    return found


def _resolve(api: Api, entry: dict[str, Any] | None) -> dict[str, Any] | None:
    if entry is None or "alias" not in entry:
        return entry
    module, _, name = entry["alias"].rpartition(".")
    return api.get(module, {}).get(name)


def _compare(theirs: dict[str, Any], mine: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return what breaks callers, and the names of parameters beyond the published ones."""
    if theirs["kind"] != mine["kind"]:
        return [f"expected a {theirs['kind']}, got a {mine['kind']}"], []
    if theirs["kind"] == "attribute":
        return [], []
    broken, extra = _compare_parameters(theirs["parameters"], mine["parameters"])
    for name, member in theirs.get("members", {}).items():
        other = mine["members"].get(name)
        if other is None:
            broken.append(f"{name}: expected the published member, got none")
            continue
        inner, more = _compare(member, other)
        broken += [f"{name}: {message}" for message in inner]
        extra += [f"{name}({parameter})" for parameter in more]
    return broken, extra


def _compare_parameters(
    theirs: list[dict[str, str]], mine: list[dict[str, str]]
) -> tuple[list[str], list[str]]:
    # A published function of (*args, **kwargs) passes everything on: what it takes is said elsewhere.
    if [parameter["kind"] for parameter in theirs] == list(_VARIADIC):
        return [], []
    broken = []
    for position, parameter in enumerate(theirs):
        other = mine[position] if position < len(mine) else None
        if other is None or other["name"] != parameter["name"]:
            got = other["name"] if other else "none"
            broken.append(f"parameter {position + 1}: expected {parameter['name']}, got {got}")
            break
        if other["kind"] != parameter["kind"]:
            broken.append(f"parameter {parameter['name']}: expected {parameter['kind']}, got {other['kind']}")
        if not _same_default(parameter.get("default"), other.get("default")):
            broken.append(
                f"parameter {parameter['name']}: expected default {parameter.get('default', 'none')},"
                f" got {other.get('default', 'none')}"
            )
    extra = mine[len(theirs) :] if not broken else []
    broken += [
        f"parameter {parameter['name']}: beyond the published ones, expected a default"
        for parameter in extra
        if "default" not in parameter and parameter["kind"] not in _VARIADIC
    ]
    return broken, [parameter["name"] for parameter in extra]


def _same_default(first: str | None, second: str | None) -> bool:
    if first is None or second is None:
        return first == second
    try:
        one, two = ast.literal_eval(first), ast.literal_eval(second)
    except (ValueError, SyntaxError):
        return first == second
    return type(one) is type(two) and bool(one == two)


def _snapshot_of(wheel: Wheel) -> dict[str, Any]:
    """Return what a release promises: the names of the package, and the definitions of its modules.

    What a module merely imports is no promise.
    """
    modules = {
        module: {
            name: entry
            for name, entry in names.items()
            if module == _PACKAGE or entry.get("alias", module).startswith(module)
        }
        for module, names in read_api(wheel).items()
        if "._" not in module
    }
    return {"schema": SCHEMA, "package": _PACKAGE, "version": str(wheel.version), "modules": modules}


def _main(wheel_path: str, output: str) -> None:
    with open_wheel(wheel_path) as wheel:
        text = json.dumps(_snapshot_of(wheel), indent=1, sort_keys=True)
    Path(output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
