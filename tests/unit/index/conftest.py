"""A maker of tiny wheels, and snapshots of a directory."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

MakeWheel = Callable[..., Path]
Snapshot = Callable[[Path], dict[str, bytes]]


def _record(members: Mapping[str, bytes], dist_info: str) -> bytes:
    lines = []
    for name, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    return "\n".join([*lines, f"{dist_info}/RECORD,,", ""]).encode()


@pytest.fixture
def make_wheel(tmp_path: Path) -> MakeWheel:
    """Write ``<name>-<version>-<tag>.whl`` into a folder of its own (or ``folder``) and return its path.

    ``metadata`` replaces the whole METADATA; None as a member's content leaves that member out.
    """
    counter = iter(range(10**6))

    def make(
        name: str = "demo_pkg",
        version: str = "1.0",
        *,
        tag: str = "py3-none-any",
        filename: str | None = None,
        folder: Path | None = None,
        dist_info: str | None = None,
        metadata: str | None = None,
        requires_python: str | None = ">=3.10,<99",
        code: str = "VALUE = 1\n",
        members: Mapping[str, bytes | None] | None = None,
    ) -> Path:
        if metadata is None:
            metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            if requires_python is not None:
                metadata += f"Requires-Python: {requires_python}\n"
        dist_info = dist_info or f"{name}-{version}.dist-info"
        wheel = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
        content: dict[str, bytes | None] = {
            f"{name}/__init__.py": code.encode(),
            f"{dist_info}/METADATA": metadata.encode(),
            f"{dist_info}/WHEEL": wheel.encode(),
            **(members or {}),
        }
        kept = {member: data for member, data in content.items() if data is not None}
        kept[f"{dist_info}/RECORD"] = _record(kept, dist_info)
        folder = folder or tmp_path / f"built{next(counter)}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (filename or f"{name}-{version}-{tag}.whl")
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in kept.items():
                archive.writestr(zipfile.ZipInfo(member), data)
        return path

    return make


@pytest.fixture
def snapshot() -> Snapshot:
    """Every file below a directory with its bytes; without the lock, which stays behind by design."""

    def take(root: Path) -> dict[str, bytes]:
        files = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(files)
            if path.name != ".lock"
        }

    return take
