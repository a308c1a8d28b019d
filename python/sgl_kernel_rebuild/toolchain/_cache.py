"""A content-addressed store of compiled device code, shared by all builds of a user.

An entry is one file, written beside its place and moved there, so any number of writers may race: the
last one wins with the same content. Its first line is the SHA-256 of the rest; whatever does not match
is a miss. Files that were not used for longest go first when the size bound is passed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgl_kernel_rebuild.errors import ToolchainError

from ._files import TEMPORARY_MARK, replace_bytes, sha256

# Part of every key: raise it when the meaning of an entry changes.
SCHEMA = 1

_DEFAULT_LIMIT_MB = 512
_SUFFIX = ".entry"
# A temporary file this old belongs to a writer that died.
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class Entry:
    """Compiled output and the report's part that does not depend on the run."""

    output: bytes
    report: dict[str, Any]


@dataclass(frozen=True)
class CacheStatus:
    """Where the cache is and how full; sizes in bytes."""

    directory: str
    entries: int
    size: int
    limit: int

    def to_json(self) -> dict[str, Any]:
        """Return the status as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Cache:
    """A cache in ``directory``, at most about ``limit`` bytes."""

    directory: Path
    limit: int = _DEFAULT_LIMIT_MB << 20

    @classmethod
    def from_environment(cls) -> Cache:
        """Return the user's cache; ``SGLK_CACHE_DIR`` and ``SGLK_CACHE_LIMIT_MB`` override its defaults."""
        directory = os.environ.get("SGLK_CACHE_DIR")
        if not directory:
            from platformdirs import user_cache_dir

            directory = os.path.join(user_cache_dir("sgl-kernel-rebuild"), "device")
        limit = os.environ.get("SGLK_CACHE_LIMIT_MB", "").strip() or str(_DEFAULT_LIMIT_MB)
        if not (limit.isascii() and limit.isdigit()):
            raise ToolchainError(
                f"SGLK_CACHE_LIMIT_MB: expected a whole number of megabytes, got {limit!r}\n"
                "Correct or unset the variable."
            )
        return cls(Path(os.path.abspath(os.path.expanduser(directory))), int(limit) << 20)

    def load(self, key: str) -> Entry | None:
        """Return the entry of ``key`` and mark it used; None if there is none or it is damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, _, rest = content.partition(b"\n")
        if digest != sha256(rest).encode():
            return None
        report, _, output = rest.partition(b"\n")
        try:
            entry = Entry(output, json.loads(report))
        except ValueError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return entry

    def store(self, key: str, entry: Entry) -> None:
        """Write the entry of ``key`` and keep the size bound; raises OSError if it cannot."""
        rest = json.dumps(entry.report, sort_keys=True).encode() + b"\n" + entry.output
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, sha256(rest).encode() + b"\n" + rest)
        self._evict()

    def status(self) -> CacheStatus:
        """Return where the cache is, how many entries it has, their size and the bound."""
        sizes = [stat.st_size for path, stat in self._files() if path.name.endswith(_SUFFIX)]
        return CacheStatus(str(self.directory), len(sizes), sum(sizes), self.limit)

    def clear(self) -> None:
        """Remove every entry; files that are not the cache's are left alone."""
        for path, _ in self._files():
            try:
                path.unlink(missing_ok=True)
            except OSError as err:
                raise ToolchainError(
                    f"cache: {path}: cannot be removed: {err.strerror or err}\nCheck who owns the folder."
                ) from err

    def _path(self, key: str) -> Path:
        return self.directory / f"v{SCHEMA}" / key[:2] / f"{key}{_SUFFIX}"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.directory.glob("v*/??/*"):
            if path.name.endswith(_SUFFIX) or f"{_SUFFIX}{TEMPORARY_MARK}" in path.name:
                # Another process may evict it between listing and stat.
                with contextlib.suppress(OSError):
                    yield path, path.stat()

    def _evict(self) -> None:
        entries = []
        for path, stat in self._files():
            if path.name.endswith(_SUFFIX):
                entries.append((stat.st_mtime, stat.st_size, path))
            elif time.time() - stat.st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= size
