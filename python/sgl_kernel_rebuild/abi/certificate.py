"""The ABI certificate: which releases of torch a binary fits, and what each of the others lacks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.version import Version

from sgl_kernel_rebuild.errors import BinaryError

from ._demangle import demangle
from ._elffile import SharedObject, Symbol
from .atlas import Atlas
from .symbols import is_torch_library, torch_symbols

__all__ = [
    "OLDEST",
    "SCHEMA",
    "Certificate",
    "Missing",
    "ObjectReport",
    "certify",
    "describe_releases",
    "read_symbol_list",
]

SCHEMA = 1
# The oldest release that we promise to fit.
OLDEST = "2.7.0"
_LONGEST_LINE = 1 << 16
_LARGEST_LIST = 64 << 20


@dataclass(frozen=True)
class Missing:
    """A symbol that ``release`` does not export.

    ``available`` names the releases that do, oldest first; ``nearest`` the exports of ``release`` with the
    same qualified name and other parameters, demangled.
    """

    release: str
    symbol: str
    available: tuple[str, ...]
    nearest: tuple[str, ...]

    @property
    def demangled(self) -> str:
        """The declaration, readable."""
        return demangle(self.symbol)

    @property
    def first_release(self) -> str | None:
        """The oldest release that exports the symbol; None if none does."""
        return self.available[0] if self.available else None

    @property
    def history(self) -> str:
        """Which releases have the symbol, in words."""
        if not self.available:
            return "exported by no release here"
        if Version(self.release) < Version(self.available[0]):
            return f"first exported by {self.available[0]}"
        return f"last exported by {self.available[-1]}"


@dataclass(frozen=True)
class ObjectReport:
    """One shared object against the atlas. ``missing`` has an entry, maybe empty, for every release."""

    name: str
    torch_symbols: tuple[str, ...]
    missing: dict[str, tuple[Missing, ...]]
    needs_cuda_torch: bool
    shared_object: SharedObject

    @property
    def fits(self) -> tuple[str, ...]:
        """The releases that export everything this object needs."""
        return tuple(release for release, missing in self.missing.items() if not missing)


@dataclass(frozen=True)
class Certificate:
    """What ``certify`` found: the objects of ``subject``, the releases asked about, the verdicts."""

    subject: str
    releases: tuple[str, ...]
    objects: tuple[ObjectReport, ...] = field(default=())

    @property
    def fits(self) -> tuple[str, ...]:
        """The releases that every object fits."""
        return tuple(release for release in self.releases if not self.missing(release))

    def missing(self, release: str) -> tuple[Missing, ...]:
        """Return what ``release`` lacks, over all objects, each symbol once."""
        found = {
            missing.symbol: missing for report in self.objects for missing in report.missing.get(release, ())
        }
        return tuple(found[symbol] for symbol in sorted(found))

    @property
    def conclusion(self) -> str:
        """One sentence: what fits, and what a release that does not fit lacks: the first that we promise."""
        if not any(report.torch_symbols for report in self.objects):
            return f"{self.subject} uses no symbol of torch: every release fits."
        others = [release for release in self.releases if release not in self.fits]
        if not others:
            return f"{self.subject} fits torch {_span(self.releases)}."
        promised = [release for release in others if Version(release) >= Version(OLDEST)]
        sentence = f"{self.subject} does not fit torch {_span(self.releases)}"
        if self.fits:
            runs = describe_releases(self.fits, self.releases)
            sentence = f"{self.subject} fits torch {runs}{' only' if promised else ''}"
        release = promised[0] if promised else others[-1]
        missing = self.missing(release)
        first = missing[0]
        sentence += f"; under {release} it lacks {first.demangled}"
        if len(missing) > 1:
            sentence += f" and {len(missing) - 1} more"
        sentence += f", {first.history}"
        if first.nearest:
            sentence += f" (nearest there: {demangle(first.nearest[0])})"
        return sentence + "."

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as plain JSON types; ``schema`` changes when the form does."""
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "conclusion": self.conclusion,
            "releases": [
                {
                    "torch": release,
                    "verdict": "missing" if self.missing(release) else "fits",
                    "missing": len(self.missing(release)),
                }
                for release in self.releases
            ],
            "objects": [_object_json(report) for report in self.objects],
        }


def certify(
    subject: str,
    objects: Iterable[SharedObject],
    *,
    releases: Sequence[str] | None = None,
    atlas: Atlas | None = None,
    has_needed: bool = True,
) -> Certificate:
    """Compare what ``objects`` (one wheel's, or a single file) need with what each release exports.

    ``releases`` defaults to all of the atlas. ``has_needed`` is false for a bare list of symbols.
    """
    atlas = atlas or Atlas.load()
    chosen = tuple(releases) if releases is not None else atlas.releases
    every = tuple(objects)
    reports = []
    # What torch's own libraries define, where they are among the objects, is still torch's.
    others = [item for item in every if not is_torch_library(item.soname or item.name)]
    siblings = {symbol.name for item in others for symbol in item.defined}
    neighbours = {name for item in others for name in (item.soname, item.name.rpartition("/")[2]) if name}
    for shared_object in every:
        wanted = torch_symbols(shared_object, atlas, siblings, neighbours=neighbours, has_needed=has_needed)
        missing = {release: tuple(_missing(wanted, release, atlas)) for release in chosen}
        needs_cuda = any(atlas.needs_cuda(symbol) for symbol in wanted) or any(
            name in ("libc10_cuda.so", "libtorch_cuda.so") for name in shared_object.needed
        )
        reports.append(ObjectReport(shared_object.name, wanted, missing, needs_cuda, shared_object))
    return Certificate(subject, chosen, tuple(reports))


def read_symbol_list(path: str | os.PathLike[str]) -> SharedObject:
    """Return the undefined symbols that a text file lists, one a line; ``#`` begins a comment.

    The lines of ``nm -D --undefined-only`` do as well: ``U name`` or ``w name``, maybe with ``@version``.

    Raises:
        BinaryError: the file cannot be read, or is no such list.
    """
    source = Path(path)
    try:
        if source.stat().st_size > _LARGEST_LIST:
            raise BinaryError(
                f"symbols: {path}: expected at most {_LARGEST_LIST} bytes\nName a list of symbols."
            )
        text = source.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as err:
        raise BinaryError(
            f"symbols: {path}: expected a .so, a .whl or a text file with one symbol a line, got {err}\n"
            "Name one of these."
        ) from err
    symbols = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        is_weak = len(words) == 2 and words[0] in ("w", "v")
        if len(words) == 2 and words[0] in ("U", "w", "v"):
            words = words[1:]
        if len(words) > 1 or any(not word.isprintable() or len(word) > _LONGEST_LINE for word in words):
            raise BinaryError(
                f"symbols: {path}:{number}: expected one symbol a line, got {line[:80]!r}\nCorrect the line."
            )
        for word in words:
            name, _, version = word.partition("@")
            symbols.append(Symbol(name, version.lstrip("@"), is_weak=is_weak))
    return SharedObject(name=source.name, undefined=tuple(sorted(set(symbols))))


def describe_releases(chosen: Sequence[str], releases: Sequence[str]) -> str:
    """Return ``chosen`` with neighbours among ``releases`` drawn together.

    >>> describe_releases(["2.5.1", "2.7.0", "2.7.1", "2.8.0"], ["2.5.1", "2.6.0", "2.7.0", "2.7.1", "2.8.0"])
    '2.5.1, 2.7.0 to 2.8.0'
    """
    runs: list[list[str]] = [[]]
    for release in releases:
        if release in chosen:
            runs[-1].append(release)
        else:
            runs.append([])
    return ", ".join(_span(run) for run in runs if run)


def _missing(wanted: Iterable[str], release: str, atlas: Atlas) -> Iterable[Missing]:
    for symbol in wanted:
        available = atlas.exports(symbol)
        if release not in available:
            yield Missing(release, symbol, available, atlas.nearest(symbol, release))


def _object_json(report: ObjectReport) -> dict[str, Any]:
    shared_object = report.shared_object
    return {
        "name": report.name,
        "soname": shared_object.soname,
        "needed": list(shared_object.needed),
        "floors": {
            family: floor
            for family in ("GLIBC", "GLIBCXX", "CXXABI", "GCC")
            if (floor := shared_object.floor(family))
        },
        "torch_symbols": list(report.torch_symbols),
        "needs_cuda_torch": report.needs_cuda_torch,
        "fits": list(report.fits),
        "missing": {
            release: [
                {
                    "symbol": item.symbol,
                    "demangled": item.demangled,
                    "first_release": item.first_release,
                    "available": list(item.available),
                    "nearest": [demangle(name) for name in item.nearest],
                }
                for item in missing
            ]
            for release, missing in report.missing.items()
            if missing
        },
    }


def _span(releases: Sequence[str]) -> str:
    return releases[0] if len(releases) == 1 else f"{releases[0]} to {releases[-1]}"
