"""From certificates, coverage and audits to HTML: the same input gives the same bytes."""

from __future__ import annotations

import functools
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sgl_kernel_rebuild.abi.certificate import describe_releases

__all__ = ["PageWheel", "render_audit", "render_index"]

_TEMPLATES = Path(__file__).with_name("templates")
_CERTIFICATE = "/sgl_kernel/abi_certificate.json"
_COVERAGE = "/sgl_kernel/coverage.json"
_LARGEST = 64 << 20
_SHOWN = 12
"""Missing symbols of one release; a page is to be read, ``audit --json`` has all."""


@dataclass(frozen=True)
class _Row:
    """One shared object: how many symbols each release lacks, and the facts beside."""

    name: str
    missing: tuple[int, ...]
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Missing:
    release: str
    count: int
    symbols: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Verdicts:
    conclusion: str
    releases: tuple[str, ...]
    rows: tuple[_Row, ...]
    missing: tuple[_Missing, ...]


@dataclass(frozen=True)
class _Coverage:
    """Operator -> target -> number of kernels, most registers that one takes (0: unknown, it is PTX)."""

    targets: tuple[str, ...]
    ops: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class PageWheel:
    """A published wheel; ``path`` is where its proofs are read from, the rest is shown as it is.

    ``install`` is the requirement that pip takes it by.
    """

    path: Path
    project: str
    version: str
    filename: str
    url: str
    sha256: str
    size: int | None
    requires_python: str | None
    install: str


def render_index(wheels: Sequence[PageWheel]) -> bytes:
    """Return the page of an index; ``wheels`` in the order in which they are shown.

    A wheel without a certificate, or with one that cannot be read, is shown without.
    """
    shown = [{"wheel": wheel, **_evidence(wheel.path)} for wheel in wheels]
    newest = list({wheel.project: wheel for wheel in reversed(wheels)}.values())
    return _render("index.html", wheels=shown, newest=sorted(newest, key=lambda wheel: wheel.project))


def render_audit(reports: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the page of an audit. ``reports`` are those of ``audit --json``, with their findings."""
    shown = [
        {"report": report, "verdicts": _verdicts(report), "findings": report.get("findings", ())}
        for report in reports
    ]
    return _render("audit.html", reports=shown)


def _render(name: str, **values: Any) -> bytes:
    text = _environment().get_template(name).render(**values)
    return text.encode()


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["megabytes"] = lambda size: "" if size is None else f"{size / 1e6:.2f} MB"
    environment.filters["anchor"] = lambda name: "".join(char if char.isalnum() else "-" for char in name)
    return environment


def _evidence(path: Path) -> dict[str, Any]:
    """Read the proofs that the gate put into a wheel; None for what is not there or of an unknown form."""
    found: dict[str, Any] = {"verdicts": None, "coverage": None}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not 0 < info.file_size < _LARGEST or ".dist-info/" not in info.filename:
                    continue
                if info.filename.endswith(_CERTIFICATE):
                    found["verdicts"] = _verdicts(json.loads(archive.read(info)))
                elif info.filename.endswith(_COVERAGE):
                    found["coverage"] = _coverage(json.loads(archive.read(info)))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError):
        pass
    except (ValueError, KeyError, TypeError, AttributeError):  # JSON, but not that of a certificate
        pass
    return found


def _verdicts(document: Mapping[str, Any]) -> _Verdicts:
    releases = tuple(str(item["torch"]) for item in document["releases"])
    rows = []
    missing: dict[str, dict[str, dict[str, Any]]] = {}
    for item in document["objects"]:
        for release, symbols in item["missing"].items():
            for symbol in symbols:
                shown = {
                    "demangled": str(symbol["demangled"]),
                    "history": _history(symbol, releases),
                    "nearest": [str(name) for name in symbol["nearest"]],
                }
                missing.setdefault(str(release), {})[str(symbol["symbol"])] = shown
        counts = tuple(len(item["missing"].get(release, ())) for release in releases)
        rows.append(_Row(str(item["name"]), counts, tuple(_facts(item))))
    details = tuple(
        _Missing(release, len(missing[release]), tuple(list(missing[release].values())[:_SHOWN]))
        for release in releases
        if release in missing
    )
    return _Verdicts(str(document["conclusion"]), releases, tuple(rows), details)


def _history(symbol: Mapping[str, Any], releases: Sequence[str]) -> str:
    available = [str(release) for release in symbol["available"]]
    known = describe_releases(available, releases)
    return f"exported by torch {known}" if known else "exported by none of these releases"


def _facts(item: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "torch symbols", str(len(item["torch_symbols"]))
    if item.get("code"):
        yield "GPU code", ", ".join(map(str, item["code"]))
    lacking = [str(gpu) for gpu, code in item.get("gpus", {}).items() if not code]
    if lacking:
        yield "no code for", ", ".join(lacking)
    for family, floor in item["floors"].items():
        yield str(family), str(floor)
    if item.get("cuda_runtime"):
        yield "CUDA runtime", str(item["cuda_runtime"])
    python = item.get("python")
    if python and python["uses_api"]:
        yield "Python", str(python["claims"] or "unnamed")


def _coverage(document: Mapping[str, Any]) -> _Coverage:
    targets = tuple(map(str, document["targets"]))
    kernels = document["kernels"]

    def cell(names: Iterable[str], target: str) -> tuple[int, int]:
        names = list(names)
        reports = [kernels[name]["targets"].get(target) for name in names]
        return len(names), max((int(report["registers"]) for report in reports if report), default=0)

    ops = {
        str(op): {target: cell(entry["kernels"].get(target, ()), target) for target in targets}
        for op, entry in sorted(document["ops"].items())
    }
    return _Coverage(targets, ops)
