"""Whether a wheel's tags are true: file name = METADATA = WHEEL = what its shared objects need.

Specifications: PEP 425 and 427 (tags, wheels), PEP 600 (manylinux by glibc version).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from packaging.tags import Tag, parse_tag
from packaging.utils import canonicalize_name

from sgl_kernel_rebuild.abi import Atlas
from sgl_kernel_rebuild.abi._elffile import SharedObject, version_key
from sgl_kernel_rebuild.abi.symbols import classify

from .archive import Wheel
from .violation import Violation

__all__ = ["TagReport", "check_tags", "glibc_of"]

_CHECK = "tags"
_MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_x86_64")
_LEGACY = {"manylinux1_x86_64": "2.5", "manylinux2010_x86_64": "2.12", "manylinux2014_x86_64": "2.17"}


@dataclass(frozen=True)
class TagReport:
    """The tags as named, and the highest version of glibc that any shared object asks for."""

    tags: tuple[str, ...]
    glibc_floor: str
    gcc_floor: str

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {"tags": list(self.tags), "glibc_floor": self.glibc_floor, "gcc_floor": self.gcc_floor}


def glibc_of(platform: str) -> str | None:
    """Return the glibc that a manylinux platform tag promises to run on, None for any other tag."""
    if platform in _LEGACY:
        return _LEGACY[platform]
    match = _MANYLINUX.fullmatch(platform)
    return f"{match[1]}.{match[2]}" if match else None


def check_tags(
    wheel: Wheel, objects: Iterable[SharedObject], *, newest_glibc: str = "2.28"
) -> tuple[TagReport, list[Violation]]:
    """Compare what the wheel is called with what it is.

    ``newest_glibc`` bounds the promise itself: a wheel for a newer glibc would leave out systems in use.
    """
    objects = tuple(objects)
    floors = [floor for floor in (item.floor("GLIBC") for item in objects) if floor]
    floor = max(floors, key=version_key, default="")
    gcc = max((item.floor("GCC") for item in objects), key=version_key, default="")
    violations = [
        *_check_identity(wheel),
        *_check_wheel_file(wheel, bool(objects)),
        *_check_platforms(wheel.tags, floor, newest_glibc),
        *_check_python(wheel.tags, objects),
    ]
    tags = tuple(sorted(str(tag) for tag in wheel.tags))
    return TagReport(tags, floor, gcc), sorted(violations)


def _check_identity(wheel: Wheel) -> Iterable[Violation]:
    metadata = wheel.metadata
    folder = wheel.dist_info.removesuffix(".dist-info")
    if canonicalize_name(metadata.name) != wheel.name:
        yield Violation(_CHECK, "METADATA", f"Name: expected {wheel.name} (file name), got {metadata.name}")
    if metadata.version != wheel.version:
        yield Violation(
            _CHECK, "METADATA", f"Version: expected {wheel.version} (file name), got {metadata.version}"
        )
    expected = "-".join(wheel.path.name.split("-")[:2])
    if folder != expected:
        yield Violation(_CHECK, wheel.dist_info, f"expected {expected}.dist-info (file name)")


def _check_wheel_file(wheel: Wheel, has_objects: bool) -> Iterable[Violation]:
    fields = wheel.wheel_metadata
    if fields.get("Wheel-Version") != "1.0":
        yield Violation(_CHECK, "WHEEL", f"Wheel-Version: expected 1.0, got {fields.get('Wheel-Version')}")
    purelib = str(fields.get("Root-Is-Purelib", "")).lower()
    if purelib != ("false" if has_objects else "true"):
        yield Violation(
            _CHECK, "WHEEL", f"Root-Is-Purelib: expected {not has_objects}, got {purelib or None}"
        )
    listed: set[Tag] = set()
    for line in fields.get_all("Tag", []):
        listed |= parse_tag(str(line))
    if listed != wheel.tags:
        yield Violation(
            _CHECK, "WHEEL", f"Tag: expected {_names(wheel.tags)} (file name), got {_names(listed) or None}"
        )


def _check_platforms(tags: frozenset[Tag], floor: str, newest_glibc: str) -> Iterable[Violation]:
    for platform in sorted({tag.platform for tag in tags}):
        promised = glibc_of(platform)
        if promised is None:
            yield Violation(_CHECK, platform, "expected a manylinux platform for x86_64")
            continue
        if floor and version_key(promised) < version_key(floor):
            yield Violation(
                _CHECK, platform, f"promises glibc {promised}, but a shared object needs GLIBC_{floor}"
            )
        if version_key(promised) > version_key(newest_glibc):
            yield Violation(
                _CHECK,
                platform,
                f"expected a glibc of at most {newest_glibc}, got {promised} (needed: {floor})",
            )


def _check_python(tags: frozenset[Tag], objects: tuple[SharedObject, ...]) -> Iterable[Violation]:
    kinds = {(tag.interpreter, tag.abi) for tag in tags}
    if kinds != {("py3", "none")}:
        found = ", ".join(sorted("-".join(kind) for kind in kinds))
        yield Violation(_CHECK, found, "expected py3-none: nothing here depends on a version of Python")
    atlas = Atlas.load()
    for item in objects:
        python = [need for need in classify(item, atlas) if need.kind == "python"]
        names = [need.symbol.name for need in python]
        if names:
            yield Violation(
                _CHECK, item.name, f"uses Python's C API, against py3-none: {', '.join(names[:5])}"
            )


def _names(tags: Iterable[Tag]) -> str:
    return ", ".join(sorted(str(tag) for tag in tags))
