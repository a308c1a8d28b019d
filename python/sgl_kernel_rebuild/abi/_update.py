"""Makes the atlas from the torch wheels of a package index.

Of each wheel the five libraries whose exports extensions use are streamed, one after the other, through a
temporary file; what is kept is the names that their dynamic symbol tables define. A release that has been
read is kept in a folder, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import lzma
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from sgl_kernel_rebuild.errors import BinaryError

__all__ = [
    "LIBRARIES",
    "OLDEST_RELEASE",
    "ReleaseExports",
    "collect",
    "compile_atlas",
    "default_target",
    "update",
]

LIBRARIES = ("libc10.so", "libc10_cuda.so", "libtorch_cpu.so", "libtorch_cuda.so", "libtorch_python.so")
"""In the order in which a symbol that several of them have is looked for."""
OLDEST_RELEASE = "2.5.0"

# One block, the same bytes everywhere.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 64 << 20}]


@dataclass(frozen=True)
class ReleaseExports:
    """The exports of one release: symbol -> the library (of `LIBRARIES`) that has it."""

    release: str
    wheel: str
    exports: dict[str, str]


def default_target() -> Path:
    """Return the file that `Atlas.load` reads by default."""
    return Path(__file__).with_name("data") / "torch_exports.txt.xz"


def update(
    target: Path,
    cache: Path,
    *,
    releases: Sequence[str] | None = None,
    index_url: str | None = None,
    on_start: Callable[[str, int], None] | None = None,
    on_read: Callable[[int], None] | None = None,
) -> tuple[str, ...]:
    """Write the atlas of ``releases``, by default all of the index from 2.5.0 on, to ``target``.

    ``cache`` keeps what was read of each release. ``on_start`` is told a release and the bytes that are going
    to be unpacked of it (0: it was in the cache), ``on_read`` the bytes of each piece. ``target`` changes
    only when everything has been read. Returns the releases.

    Raises:
        BinaryError: the index, a wheel or a library in it cannot be read, or a release is not there.
    """
    from sgl_kernel_rebuild.remote import RemoteWheel, find_wheels, open_remote

    offered: dict[str, RemoteWheel] = {}
    for wheel in find_wheels("torch", index_url=index_url):
        is_wanted = wheel.version >= Version(OLDEST_RELEASE) and not wheel.version.is_prerelease
        # The wheel of any Python does: the libraries are the same.
        if is_wanted and not wheel.is_yanked:
            offered.setdefault(wheel.version.public, wheel)
    chosen = tuple(releases) if releases is not None else tuple(offered)
    if strangers := [release for release in chosen if release not in offered]:
        raise BinaryError(
            f"atlas: torch {', '.join(strangers)}: expected releases of the index: {', '.join(offered)}\n"
            "Name some of these."
        )
    collected = []
    for release in sorted(chosen, key=Version):
        wheel = offered[release]
        kept = cache / f"torch-{release}.txt.xz"
        found = _read_kept(kept, release, wheel.filename)
        if found is None:
            with open_remote(wheel, on_read=on_read) as archive:
                members = _members(archive.members)
                if on_start is not None:
                    on_start(release, sum(archive.members[name].file_size for name in members.values()))
                found = ReleaseExports(release, wheel.filename, collect(archive, members))
            _write(kept, _keep(found))
        elif on_start is not None:
            on_start(release, 0)
        collected.append(found)
    _write(target, compile_atlas(collected))
    return tuple(item.release for item in collected)


def collect(archive: object, members: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return symbol -> library of an open torch wheel (`wheel.archive.Wheel`)."""
    from sgl_kernel_rebuild.wheel.archive import Wheel

    from ._elffile import read_shared_object

    if not isinstance(archive, Wheel):
        raise TypeError(f"collect: archive: expected a Wheel, got {type(archive).__name__}")
    exports: dict[str, str] = {}
    for library, name in (members or _members(archive.members)).items():
        with archive.open_seekable(name) as stream:
            found = read_shared_object(stream, f"{archive.path.name}: {name}")
        for symbol in found.defined:
            exports.setdefault(symbol.name, library)
    if not exports:
        raise BinaryError(
            f"atlas: {archive.path.name}: expected libraries of torch, got none\nName a wheel of torch."
        )
    return exports


def compile_atlas(collected: Iterable[ReleaseExports]) -> bytes:
    """Return the file that `Atlas.load` reads: the same releases give the same bytes."""
    ordered = sorted(collected, key=lambda item: Version(item.release))
    masks: dict[str, int] = {}
    first: dict[str, str] = {}
    for bit, item in enumerate(ordered):
        for symbol, library in item.exports.items():
            masks[symbol] = masks.get(symbol, 0) | 1 << bit
            first.setdefault(symbol, library)
    lines = [
        f"# torch {' '.join(item.release for item in ordered)}",
        f"# lib {' '.join(LIBRARIES)}",
        "# symbol, hexadecimal mask of releases, library",
    ]
    rows = [
        b"%s %x %d" % (symbol.encode(), mask, LIBRARIES.index(first[symbol]))
        for symbol, mask in masks.items()
    ]
    # By the symbol and the space after it, as Atlas searches.
    text = "\n".join(lines).encode() + b"\n" + b"\n".join(sorted(rows)) + b"\n"
    return lzma.compress(text, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=_FILTERS)


def _members(names: Iterable[str]) -> dict[str, str]:
    known = set(names)
    return {library: f"torch/lib/{library}" for library in LIBRARIES if f"torch/lib/{library}" in known}


def _keep(item: ReleaseExports) -> bytes:
    lines = [f"# {item.wheel}", *(f"{symbol} {library}" for symbol, library in sorted(item.exports.items()))]
    return lzma.compress("\n".join(lines).encode(), preset=1)


def _read_kept(path: Path, release: str, wheel: str) -> ReleaseExports | None:
    """Return what an earlier run kept; None where it kept nothing, something else or another wheel."""
    try:
        head, *lines = lzma.decompress(path.read_bytes()).decode().split("\n")
        exports = {symbol: library for symbol, _, library in (line.partition(" ") for line in lines)}
    except (OSError, lzma.LZMAError, UnicodeDecodeError):
        return None
    if head != f"# {wheel}" or not exports or not set(exports.values()) <= set(LIBRARIES):
        return None
    return ReleaseExports(release, wheel, exports)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as err:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise BinaryError(
            f"atlas: {path}: cannot be written: {err.strerror or err}\nName a place that can be written."
        ) from err
