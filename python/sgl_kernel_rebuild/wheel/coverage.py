"""The coverage manifest: which operator has which kernels on which architecture, and what they take.

Three documents meet here: ``ops.json`` (operator -> family and patterns of kernel names), the build record
(source -> hash of the code for each target), and the fat binaries that the shared objects really carry.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from sgl_kernel_rebuild.abi._cubin import Kernel, read_kernels
from sgl_kernel_rebuild.abi._elffile import SharedObject
from sgl_kernel_rebuild.abi._fatbin import CodeObject, iter_code, read_payload

from .archive import Wheel
from .violation import Violation

__all__ = ["BUILD_RECORD", "OPS", "SCHEMA", "Coverage", "DeviceCode", "check_coverage", "read_device_code"]

SCHEMA = 1
BUILD_RECORD = "sgl_kernel/build_record.json"
OPS = "sgl_kernel/ops.json"
_CHECK = "coverage"
_RECORD_SCHEMA = 1
_PTX_ENTRY = re.compile(rb"\.entry\s+([\w$.]+)")
# A kernel of one architecture says so in its name.
_ONE_ARCHITECTURE = re.compile(r"(?:^|_)sm(\d+)_")
# An operator's schema, as it stands in the read-only data: rmsnorm(Tensor x) -> Tensor.
_SCHEMA_STRING = re.compile(rb"(?<=\0)(?:\w+::)?([A-Za-z_]\w*)\([^\0]*\) -> [^\0]*\0")
_PADDING = 8


@dataclass(frozen=True)
class DeviceCode:
    """The code of one source for one target, as a fat binary holds it.

    Code of one ``container`` comes from one source. ``kernels`` maps entry points to what they take, which
    PTX does not tell.
    """

    container: str
    target: str
    digests: frozenset[str]
    kernels: dict[str, Kernel | None]

    @property
    def is_ptx(self) -> bool:
        """Whether this is PTX, which the packers strip of comments and indentation: no hash can match."""
        return self.target.startswith("compute_")


@dataclass
class Coverage:
    """What the manifest says. ``targets`` are ``sm_80`` to ``sm_120`` and ``compute_120``."""

    targets: tuple[str, ...] = ()
    families: dict[str, str] = field(default_factory=dict)
    ops: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    kernels: dict[str, dict[str, Kernel | None]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def spilling(self) -> list[str]:
        """``kernel on target`` for each kernel with a stack or local-memory instructions."""
        return [
            f"{name} on {target}"
            for name, targets in sorted(self.kernels.items())
            for target, kernel in targets.items()
            if kernel and (kernel.stack or kernel.local_loads or kernel.local_stores)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON types; ``schema`` changes when the form does."""
        return {
            "schema": SCHEMA,
            "targets": list(self.targets),
            "ops": {
                op: {"family": self.families[op], "kernels": kernels}
                for op, kernels in sorted(self.ops.items())
            },
            "kernels": {
                name: {
                    "source": self.sources[name],
                    "targets": {
                        target: kernel.to_json() if kernel else None for target, kernel in targets.items()
                    },
                }
                for name, targets in sorted(self.kernels.items())
            },
        }


def read_device_code(
    shared_object: SharedObject, stream: BinaryIO, name: str
) -> tuple[list[DeviceCode], set[str]]:
    """Return the code in the fat binaries of a shared object, and the operators whose schema it holds.

    ``name`` is what messages call the file.

    Raises:
        BinaryError: a fat binary or a cubin is corrupt.
    """
    found = []
    for code in list(iter_code(stream, shared_object.sections, name)):
        data = read_payload(stream, code, name)
        kernels = _entry_points(code, data, f"{name}: {code.target}")
        container = f"{name}: {code.container}"
        found.append(DeviceCode(container, code.target, frozenset(_digests(data)), kernels))
    return found, _registered(shared_object, stream)


def check_coverage(
    wheel: Wheel, code: Iterable[DeviceCode], registered: set[str]
) -> tuple[Coverage, list[Violation]]:
    """Hold the code of a wheel against its build record and its list of operators."""
    violations: list[Violation] = []
    record = _document(wheel, BUILD_RECORD, violations)
    ops = _document(wheel, OPS, violations)
    try:
        if record is not None and ops is not None:
            return _check(wheel, record, ops, list(code), registered)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        violations.append(
            Violation(_CHECK, f"{BUILD_RECORD}, {OPS}", f"of an unknown form: {type(err).__name__}: {err}")
        )
    return Coverage(), violations


def _document(wheel: Wheel, name: str, violations: list[Violation]) -> dict[str, Any] | None:
    member = f"{wheel.dist_info}/{name}"
    if member not in wheel.members:
        violations.append(Violation(_CHECK, name, "expected in the dist-info folder, got none"))
        return None
    try:
        value = json.loads(wheel.read_text(member))
    except (ValueError, RecursionError) as err:
        violations.append(Violation(_CHECK, name, f"expected JSON, got {err}"))
        return None
    if not isinstance(value, dict):
        violations.append(Violation(_CHECK, name, "expected a JSON object"))
        return None
    return value


def _check(
    wheel: Wheel,
    record: dict[str, Any],
    ops: dict[str, Any],
    code: list[DeviceCode],
    registered: set[str],
) -> tuple[Coverage, list[Violation]]:
    violations = _check_record(wheel, record)
    by_source, misfits = _assign(record, code)
    violations += misfits
    wanted = [f"sm_{arch}" for arch in record["architectures"]] + [
        f"compute_{arch}" for arch in record["ptx"]
    ]
    coverage = Coverage(
        targets=tuple(wanted), families={op: str(entry["family"]) for op, entry in ops.items()}
    )
    used: set[tuple[str, str]] = set()
    for op, entry in sorted(ops.items()):
        sources = [source for source in by_source if _family(source) == entry["family"]]
        if not sources:
            violations.append(Violation(_CHECK, op, f"family {entry['family']}: expected code, got none"))
        coverage.ops[op] = {target: [] for target in wanted}
        for pattern in entry["kernels"]:
            for target in wanted:
                found = _matching(by_source, sources, pattern, target)
                used |= {(source, kernel) for source, kernel in found}
                names = {kernel for _, kernel in found}
                coverage.ops[op][target] = sorted(names.union(coverage.ops[op][target]))
                if not found and _is_wanted(pattern, target):
                    violations.append(
                        Violation(_CHECK, op, f"{pattern}: expected a kernel for {target}, got none")
                    )
    for source, targets in by_source.items():
        for target, item in targets.items():
            for name, kernel in item.kernels.items():
                coverage.kernels.setdefault(name, {})[target] = kernel
                coverage.sources[name] = source
                if kernel is not None and kernel.uniform_copies > 0:
                    message = f"{target}: {kernel.uniform_copies} copies to uniform addresses"
                    violations.append(Violation(_CHECK, name, f"{message}: expected none (a fault of ptxas)"))
    dead = {(source, name) for name, source in coverage.sources.items()} - used
    violations += [
        Violation(_CHECK, name, f"kernel of {source}: no operator in {OPS} uses it")
        for source, name in sorted(dead)
    ]
    violations += _check_registered(ops, registered)
    return coverage, sorted(set(violations))


def _check_record(wheel: Wheel, record: dict[str, Any]) -> list[Violation]:
    violations = []
    if record["schema"] != _RECORD_SCHEMA:
        violations.append(
            Violation(_CHECK, BUILD_RECORD, f"schema: expected {_RECORD_SCHEMA}, got {record['schema']}")
        )
    if record["version"] != str(wheel.version):
        violations.append(
            Violation(_CHECK, BUILD_RECORD, f"version: expected {wheel.version}, got {record['version']}")
        )
    return violations


def _assign(
    record: dict[str, Any], code: list[DeviceCode]
) -> tuple[dict[str, dict[str, DeviceCode]], list[Violation]]:
    """Return source -> target -> code by the hashes of the record, and what is only on one side."""
    violations = []
    origin: dict[tuple[str, str], str] = {}
    for source, entry in record["sources"].items():
        for target, digest in entry["code"].items():
            origin[target, digest] = source
    by_source: dict[str, dict[str, DeviceCode]] = {source: {} for source in sorted(record["sources"])}
    containers: dict[str, str] = {}
    for item in sorted(code, key=lambda item: item.is_ptx):
        known = [origin[item.target, digest] for digest in item.digests if (item.target, digest) in origin]
        if item.is_ptx:
            known = [containers[item.container]] if item.container in containers else []
        if not known:
            names = ", ".join(sorted(item.kernels)[:3]) or "no kernel"
            violations.append(Violation(_CHECK, item.target, f"code ({names}): not in the build record"))
            continue
        containers[item.container] = known[0]
        by_source[known[0]][item.target] = item
    for source, entry in record["sources"].items():
        for target in sorted(entry["code"].keys() - by_source[source].keys()):
            violations.append(
                Violation(_CHECK, source, f"{target}: in the build record, but not in a shared object")
            )
        for target in sorted(by_source[source].keys() - entry["code"].keys()):
            violations.append(Violation(_CHECK, source, f"{target}: expected in the build record, got none"))
    return by_source, violations


def _matching(
    by_source: dict[str, dict[str, DeviceCode]], sources: Iterable[str], pattern: str, target: str
) -> list[tuple[str, str]]:
    return [
        (source, kernel)
        for source in sources
        for name, item in by_source[source].items()
        if _serves(name, target)
        for kernel in item.kernels
        if fnmatch.fnmatchcase(kernel, pattern)
    ]


def _serves(target: str, wanted: str) -> bool:
    """A file may be compiled for 120a where the list of architectures says 120."""
    return target == wanted or target.rstrip("af") == wanted


def _is_wanted(pattern: str, target: str) -> bool:
    one = _ONE_ARCHITECTURE.search(pattern)
    return one is None or target.rstrip("af") == f"sm_{one[1]}"


def _family(source: str) -> str:
    """``csrc/kernels/norm.cu`` and ``csrc/kernels/norm/large.cu`` are both of the family norm."""
    parts = PurePosixPath(source).parts
    after = parts[parts.index("kernels") + 1 :] if "kernels" in parts else parts[-1:]
    return PurePosixPath(after[0]).stem if after else ""


def _check_registered(ops: dict[str, Any], registered: set[str]) -> list[Violation]:
    # The linker may merge a schema into the end of a longer one: rmsnorm(...) into gemma_rmsnorm(...).
    missing = {op for op in ops if not any(name.endswith(op) for name in registered)}
    return [
        *(Violation(_CHECK, op, f"in {OPS}, but no shared object registers it") for op in sorted(missing)),
        *(Violation(_CHECK, op, f"registered, but not in {OPS}") for op in sorted(registered - ops.keys())),
    ]


def _registered(shared_object: SharedObject, stream: BinaryIO) -> set[str]:
    found = set()
    for offset, size in shared_object.sections.get(".rodata", ()):
        stream.seek(offset)
        data = b"\0" + stream.read(size)
        found |= {match[1].decode() for match in _SCHEMA_STRING.finditer(data)}
    return found


def _entry_points(code: CodeObject, data: bytes, name: str) -> dict[str, Kernel | None]:
    if code.kind == "cubin":
        return {kernel.name: kernel for kernel in read_kernels(data, name)}
    return {match[1].decode(): None for match in _PTX_ENTRY.finditer(data)}


def _digests(data: bytes) -> Iterable[str]:
    """Yield the hash of ``data`` and of ``data`` without the zeros that end or pad it in a fat binary."""
    yield hashlib.sha256(data).hexdigest()
    for length in range(len(data) - 1, max(len(data) - _PADDING - 1, 0), -1):
        if data[length]:
            break
        yield hashlib.sha256(data[:length]).hexdigest()
