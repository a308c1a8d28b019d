"""The build record: which sources and compilers made which machine code.

Holds no time, no path of the machine and nothing of the cache: the same sources and compilers give the
same bytes anywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgl_kernel_rebuild.errors import ToolchainError

from ._files import canonical_json, sha256
from ._model import CompilerIdentity, Report, check_arch

_SCHEMA = 1


def build_record(
    report_paths: Sequence[str | os.PathLike[str]],
    *,
    compiler: CompilerIdentity,
    cxx: str,
    version: str,
    archs: Sequence[str],
    ptx: Sequence[str],
    source_root: str | os.PathLike[str],
) -> dict[str, Any]:
    """Return the record of a build from the reports of its compilations.

    ``device_source_sha256`` covers every device source and header with its name;
    ``device_code_sha256`` covers every cubin and PTX with source, architecture and kind.

    Raises:
        ToolchainError: reports that are unreadable, doubled, of another compiler, older than their
            sources, or that leave a listed architecture without code.
    """
    reports = sorted(
        (_read_report(Path(path)) for path in report_paths),
        key=lambda report: (report.source, *_code_order(report)),
    )
    inputs = _merge_inputs(reports, source_root)
    sources: dict[str, Any] = {}
    for report in reports:
        if report.compiler != compiler:
            raise ToolchainError(
                f"record: {report.source}: expected code by {_describe(compiler)},"
                f" got {_describe(report.compiler)}\n"
                "Remove the build folder and build again."
            )
        source = sources.setdefault(report.source, {"options": report.options, "code": {}})
        target = _target(report)
        if target in source["code"]:
            raise ToolchainError(
                f"record: {report.source} {target}: expected once, got twice\nDrop one report."
            )
        if source["options"] != report.options:
            raise ToolchainError(
                f"record: {report.source} {target}: expected options {source['options']},"
                f" got {report.options}\n"
                "Remove the build folder and build again."
            )
        source["code"][target] = report.sha256
    _check_coverage(reports, archs, ptx)
    code = {name: source["code"] for name, source in sources.items()}
    return {
        "schema": _SCHEMA,
        "project": "sgl-kernel",
        "version": version,
        "device_compiler": {"name": compiler.name, "version": compiler.version, "headers": compiler.headers},
        "cxx_compiler": cxx,
        "architectures": list(archs),
        "ptx": list(ptx),
        "inputs": inputs,
        "sources": sources,
        "device_source_sha256": sha256(canonical_json(inputs)),
        "device_code_sha256": sha256(canonical_json(code)),
    }


def _read_report(path: Path) -> Report:
    try:
        return Report.from_json(json.loads(path.read_bytes()))
    except OSError as err:
        raise ToolchainError(
            f"record: {path}: cannot be read: {err.strerror or err}\nCompile the source first."
        ) from err
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise ToolchainError(
            f"record: {path}: expected a compile report, which this is not: {err!r}\n"
            "Compile the source again."
        ) from err


def _merge_inputs(reports: Sequence[Report], source_root: str | os.PathLike[str]) -> dict[str, str]:
    inputs: dict[str, str] = {}
    for report in reports:
        for name, digest in report.inputs.items():
            if inputs.setdefault(name, digest) != digest:
                raise ToolchainError(
                    f"record: {name}: expected one content, got another for {report.source}\nBuild again."
                )
    for name, digest in inputs.items():
        if name.startswith("<"):  # outside the source root: only its hash is known
            continue
        try:
            actual = sha256(Path(source_root, name).read_bytes())
        except OSError as err:
            raise ToolchainError(
                f"record: {Path(source_root, name)}: cannot be read: {err.strerror or err}\n"
                "Give the root that the sources were compiled under as --source-root."
            ) from err
        if actual != digest:
            raise ToolchainError(f"record: {name}: changed since it was compiled\nBuild again.")
    return dict(sorted(inputs.items()))


def _check_coverage(reports: Sequence[Report], archs: Sequence[str], ptx: Sequence[str]) -> None:
    for kind, wanted in (("cubin", archs), ("ptx", ptx)):
        # A file may ask for 120a where the list says 120.
        present = {report.arch.rstrip("af") for report in reports if report.kind == kind}
        for arch in wanted:
            if check_arch(arch).rstrip("af") not in present:
                raise ToolchainError(
                    f"record: architecture {arch}: expected {kind} code, got none\nBuild again."
                )


def _target(report: Report) -> str:
    return ("sm_" if report.kind == "cubin" else "compute_") + report.arch


def _code_order(report: Report) -> tuple[str, int, str]:
    return report.kind, int(report.arch.rstrip("af")), report.arch


def _describe(compiler: CompilerIdentity) -> str:
    headers = ", ".join(f"{name} {version}" for name, version in sorted(compiler.headers.items()))
    return f"{compiler.name} {compiler.version}" + (f" ({headers})" if headers else "")
