"""The atlas: which release of torch exports which symbol.

``data/torch_exports.txt.xz`` holds the dynamic symbols that libc10, libc10_cuda, libtorch_cpu,
libtorch_cuda and libtorch_python of all releases define (Linux x86-64; the CUDA wheels of the package
index, 2.5.0 to 2.15.0). Two comment lines name the releases and the libraries; then one line per symbol, in
byte order: the symbol, a hexadecimal mask (bit i: exported by the i-th release), the index of the library
where it was first seen.
"""

from __future__ import annotations

import bisect
import functools
import lzma
import os
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from packaging.version import InvalidVersion, Version

from sgl_kernel_rebuild.errors import BinaryError

from ._demangle import demangle, qualified_name

__all__ = ["Atlas"]

_FILE = "torch_exports.txt.xz"
_CUDA_LIBRARIES = frozenset({"libc10_cuda.so", "libtorch_cuda.so"})


class Atlas:
    """The exports of a sequence of torch releases, oldest first."""

    def __init__(self, releases: tuple[str, ...], libraries: tuple[str, ...], lines: list[bytes]) -> None:
        self.releases = releases
        self.libraries = libraries
        self._lines = lines

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Atlas:
        """Return the atlas in ``path``, or the one that comes with the package (kept in memory).

        Raises:
            BinaryError: the file cannot be read or is no atlas.
        """
        return _default() if path is None else cls._parse(Path(path).name, _read(Path(path)))

    @classmethod
    def _parse(cls, name: str, data: bytes) -> Atlas:
        try:
            lines = lzma.decompress(data).split(b"\n")
            header = {line.split()[1]: line.split()[2:] for line in lines[:3] if line.startswith(b"# ")}
            releases = tuple(word.decode() for word in header[b"torch"])
            libraries = tuple(word.decode() for word in header[b"lib"])
        except (lzma.LZMAError, KeyError, IndexError, UnicodeDecodeError) as err:
            raise BinaryError(
                f"atlas: {name}: expected export tables of torch, got {err}\nReinstall the package."
            ) from err
        first = next((index for index, line in enumerate(lines) if not line.startswith(b"#")), len(lines))
        body = lines[first:]
        while body and not body[-1]:
            body.pop()
        return cls(releases, libraries, body)

    def __contains__(self, symbol: str) -> bool:
        return self._row(symbol) is not None

    def __len__(self) -> int:
        return len(self._lines)

    def exports(self, symbol: str) -> tuple[str, ...]:
        """Return the releases that export ``symbol`` (mangled), oldest first."""
        row = self._row(symbol)
        return self._releases_of(row[0]) if row else ()

    def first_release(self, symbol: str) -> str | None:
        """Return the oldest release here that exports ``symbol``, or None."""
        return next(iter(self.exports(symbol)), None)

    def library(self, symbol: str) -> str | None:
        """Return the library of torch that exports ``symbol``, where it was first seen."""
        row = self._row(symbol)
        return self.libraries[row[1]] if row else None

    def needs_cuda(self, symbol: str) -> bool:
        """Tell whether only a CUDA build of torch has ``symbol``."""
        return self.library(symbol) in _CUDA_LIBRARIES

    def from_release(self, oldest: str) -> tuple[str, ...]:
        """Return the releases here that are ``oldest`` or newer."""
        return tuple(release for release in self.releases if Version(release) >= Version(oldest))

    def counts(self) -> dict[str, int]:
        """Return how many symbols each release exports."""
        totals = [0] * len(self.releases)
        for _, mask, _ in self._rows():
            for bit in range(len(totals)):
                totals[bit] += mask >> bit & 1
        return dict(zip(self.releases, totals, strict=True))

    def symbols(self, release: str) -> dict[str, str]:
        """Return what ``release`` exports: symbol -> library."""
        bit = self.releases.index(release)
        return {name: self.libraries[library] for name, mask, library in self._rows() if mask >> bit & 1}

    def difference(self, old: str, new: str) -> tuple[list[str], list[str]]:
        """Return the symbols of ``old`` that ``new`` lacks, and those of ``new`` that ``old`` lacks."""
        gone, added = [], []
        before, after = (self.releases.index(release) for release in (old, new))
        for name, mask, _ in self._rows():
            if mask >> before & 1 and not mask >> after & 1:
                gone.append(name)
            elif mask >> after & 1 and not mask >> before & 1:
                added.append(name)
        return gone, added

    def find(self, name: str) -> tuple[str, ...]:
        """Return the symbols that ``name`` stands for: itself, or all overloads of a qualified C++ name.

        ``c10::cuda::SetDevice`` finds both ``_ZN3c104cuda9SetDeviceEa`` and
        ``_ZN3c104cuda9SetDeviceEab``; with its parameters, one alone.
        """
        if name in self:
            return (name,)
        wanted = qualified_name(name)
        part = _encode(wanted.rpartition("::")[2].partition("<")[0]).encode()
        if "operator" in wanted:
            part = b""
        found = []
        for line in self._lines:
            if part in line and line.startswith(b"_Z"):
                symbol = line.partition(b" ")[0].decode()
                declaration = demangle(symbol)
                if declaration == name or (wanted == name and qualified_name(declaration) == wanted):
                    found.append(symbol)
        return tuple(found)

    def resolve(self, release: str) -> str:
        """Return the release here that ``release`` names; a local version such as ``+cu126`` is left off.

        Raises:
            BinaryError: the atlas has no such release.
        """
        try:
            wanted = Version(release).base_version
        except InvalidVersion:
            wanted = release
        if wanted not in self.releases:
            raise BinaryError(
                f"atlas: torch {release}: expected one of {', '.join(self.releases)}\nName one of these."
            )
        return wanted

    def nearest(self, symbol: str, release: str) -> tuple[str, ...]:
        """Return the exports of ``release`` with the qualified name of ``symbol`` but other parameters.

        Both are mangled names. A C function has none: nothing in its name tells the parameters.
        """
        bit = 1 << self.releases.index(release)
        wanted = qualified_name(demangle(symbol))
        if wanted == symbol:
            return ()
        found = []
        for prefix in _name_prefixes(symbol):
            for index in range(bisect.bisect_left(self._lines, prefix), len(self._lines)):
                name, _, rest = self._lines[index].partition(b" ")
                if not name.startswith(prefix):
                    break
                candidate = name.decode()
                if (
                    int(rest.split()[0], 16) & bit
                    and candidate != symbol
                    and qualified_name(demangle(candidate)) == wanted
                ):
                    found.append(candidate)
        # The two constructors or destructors of one declaration read the same: one line is enough.
        unique = {demangle(candidate): candidate for candidate in sorted(set(found), reverse=True)}
        unique.pop(demangle(symbol), None)
        return tuple(sorted(unique.values()))

    def _rows(self) -> Iterator[tuple[str, int, int]]:
        for line in self._lines:
            name, mask, library = line.split(b" ")
            yield name.decode(), int(mask, 16), int(library)

    def _row(self, symbol: str) -> tuple[int, int] | None:
        key = symbol.encode() + b" "
        index = bisect.bisect_left(self._lines, key)
        if index == len(self._lines) or not self._lines[index].startswith(key):
            return None
        mask, library = self._lines[index][len(key) :].split()
        return int(mask, 16), int(library)

    def _releases_of(self, mask: int) -> tuple[str, ...]:
        return tuple(release for bit, release in enumerate(self.releases) if mask >> bit & 1)


def _name_prefixes(symbol: str) -> list[bytes]:
    """Return how mangled names begin that can share the qualified name of ``symbol``.

    A mangled name is ``_Z``, then ``N`` and cv- or ref-qualifiers if nested, then the name, then the
    parameters (Itanium C++ ABI, 5.1): same name, same beginning, but for the qualifiers.
    """
    match = re.match(r"_Z(T[VTISh]|GV)?(N?)([rVK]*)([RO]?)", symbol)
    if match is None or match[1]:
        return []
    *scope, identifier = qualified_name(demangle(symbol)).split("::")
    identifier = identifier.partition("<")[0]
    if identifier.startswith("operator"):  # two letters stand for it, right after its scope
        last = _encode(scope[-1]) if scope else ""
        end = symbol.find(last, match.end()) + len(last) + 2
    else:
        end = symbol.find(_encode(identifier), match.end()) + len(_encode(identifier))
    if end <= match.end() + 2:
        return []
    core = symbol[match.end() : end]
    starts = ("_ZN", "_ZNK", "_ZNR", "_ZNO", "_ZNKR") if match[2] else ("_Z",)
    return [(start + core).encode() for start in starts]


def _encode(identifier: str) -> str:
    return f"{len(identifier)}{identifier}"


@functools.cache
def _default() -> Atlas:
    return Atlas._parse(_FILE, (resources.files(__package__) / "data" / _FILE).read_bytes())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise BinaryError(
            f"atlas: {path}: cannot be read: {err.strerror or err}\nName a readable file."
        ) from err
