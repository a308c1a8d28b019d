"""The source closure of a device file: itself and every project header it can reach.

The scan ignores conditionals, so it may list a header too many, never one too few. Headers that are
not found in the project belong to the toolchain, whose version stands for them in the cache key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sgl_kernel_rebuild.errors import CompileError, ToolchainError

from ._files import sha256

_INCLUDE = re.compile(rb"^[ \t]*#[ \t]*include\b[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_NAME = re.compile(rb'"([^"]+)"|<([^>]+)>')
_CONTINUATION = re.compile(rb"\\\r?\n")


@dataclass(frozen=True)
class SourceFile:
    """A file of the closure: where it is, how the key and the record name it, its content's hash."""

    path: str
    name: str
    sha256: str


@dataclass(frozen=True)
class SourceTree:
    """The root that names are relative to, and the include folders, all absolute."""

    root: str
    includes: tuple[str, ...]

    def name(self, path: str) -> str:
        """Return the machine-independent name of ``path``: relative to the root or to an include folder."""
        for number, folder in enumerate(self.includes):
            if is_under(path, folder) and not is_under(path, self.root):
                inner = Path(os.path.relpath(path, folder)).as_posix()
                return f"<include {number}>" + ("" if inner == "." else f"/{inner}")
        return Path(os.path.relpath(path, self.root)).as_posix()


def is_under(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or lies inside it; both absolute."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def find_root(source: str) -> str:
    """Return the nearest folder above ``source`` that holds a pyproject.toml, else its own folder."""
    folder = os.path.dirname(source)
    for candidate in [Path(folder), *Path(folder).parents]:
        if (candidate / "pyproject.toml").is_file():
            return str(candidate)
    return folder


def source_closure(source: str, tree: SourceTree) -> list[SourceFile]:
    """Return ``source`` first, then the headers it reaches, ordered by name.

    Raises:
        CompileError: the source or a header cannot be read, or an include is not a literal name.
    """
    seen: dict[str, SourceFile] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        try:
            with open(path, "rb") as stream:
                content = stream.read()
        except OSError as err:
            raise CompileError(
                f"source: {path}: cannot be read: {err.strerror or err}\nCheck the list of device sources."
            ) from err
        seen[path] = SourceFile(path, tree.name(path), sha256(content))
        waiting += _included(path, content, tree.includes)
    first = seen.pop(source)
    return [first, *sorted(seen.values(), key=lambda file: (file.name, file.path))]


def _included(path: str, content: bytes, includes: Sequence[str]) -> list[str]:
    found = []
    for match in _INCLUDE.finditer(_CONTINUATION.sub(b"", content)):
        name = _NAME.match(match[1])
        if name is None:
            raise CompileError(
                f'include: {path}: expected "name" or <name>, got {match[1].decode(errors="replace")!r}\n'
                "Name the header literally: a computed include cannot be tracked."
            )
        quoted = name[1] is not None
        folders = [os.path.dirname(path), *includes] if quoted else list(includes)
        for folder in folders:
            candidate = os.path.normpath(os.path.join(folder, os.fsdecode(name[1] or name[2])))
            if os.path.isfile(candidate):
                found.append(candidate)
                break
    return found


def depfile(target: str, files: Sequence[SourceFile]) -> bytes:
    """Return a Makefile rule that makes ``target`` depend on ``files`` (absolute paths).

    Escapes as GCC and ninja do: backslash before space and #, $ doubled.
    """
    parts = [_escape(target) + ":", *(_escape(file.path) for file in files)]
    return os.fsencode(" \\\n  ".join(parts) + "\n")


def _escape(path: str) -> str:
    if "\n" in path or "\r" in path:
        raise ToolchainError(
            f"depfile: {path!r}: expected a path without line breaks\nRename the folder that holds one."
        )
    return path.replace("$", "$$").replace("#", "\\#").replace(" ", "\\ ")
