"""What our own wheel may need, offer and weigh."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sgl_kernel_rebuild.abi import Atlas
from sgl_kernel_rebuild.abi._demangle import demangle
from sgl_kernel_rebuild.abi._elffile import SharedObject
from sgl_kernel_rebuild.abi.symbols import classify

from .archive import Wheel
from .violation import Violation

__all__ = ["EXPORT_PREFIX", "NEEDED", "check_contents", "check_policy", "check_size"]

_CHECK = "policy"
# libtorch_cpu.so comes with every torch; the rest with every Linux since glibc 2.5.
NEEDED = (
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "libtorch_cpu.so",
)
_TORCH_C = re.compile(r"aoti_torch_\w+")
# What we export on purpose; the rest stays hidden, or two libraries in one process could meet.
EXPORT_PREFIX = "sglk_"
# Marks that some linkers define in every file.
_LINKER_MARKS = frozenset({"_init", "_fini", "_edata", "_end", "__bss_start"})
_REQUIRED = (Requirement("torch>=2.7.0"),)
_PYTHON = SpecifierSet(">=3.10")
_TOP = ("sgl_kernel/",)


def check_policy(objects: Iterable[SharedObject]) -> list[Violation]:
    """Check what every shared object needs and exports against the allow-lists above."""
    atlas = Atlas.load()
    violations = []
    for item in objects:
        for name in item.needed:
            if name not in NEEDED:
                violations.append(
                    Violation(_CHECK, item.name, f"needs {name}: expected one of {', '.join(NEEDED)}")
                )
        for provider in classify(item, atlas):
            name = provider.symbol.name
            shown = demangle(name)
            if provider.kind == "torch" and not _TORCH_C.fullmatch(name):
                violations.append(
                    Violation(
                        _CHECK, item.name, f"uses {shown}: expected C functions aoti_torch_* alone of torch"
                    )
                )
            elif provider.kind == "torch" and atlas.needs_cuda(name):
                violations.append(
                    Violation(
                        _CHECK,
                        item.name,
                        f"uses {shown} of {atlas.library(name)}, which a CPU-only torch does not have",
                    )
                )
            elif provider.kind in ("cuda", "other"):
                violations.append(
                    Violation(_CHECK, item.name, f"uses {shown}, which no library it may need exports")
                )
        for symbol in item.defined:
            if not symbol.name.startswith(EXPORT_PREFIX) and symbol.name not in _LINKER_MARKS:
                violations.append(
                    Violation(
                        _CHECK, item.name, f"exports {demangle(symbol.name)}: expected {EXPORT_PREFIX}* alone"
                    )
                )
    return sorted(violations)


def check_contents(wheel: Wheel) -> list[Violation]:
    """Check that the wheel holds our package alone, one library at least, and asks for torch alone."""
    violations = []
    for name in sorted(wheel.members):
        if not name.startswith((*_TOP, f"{wheel.dist_info}/")):
            violations.append(Violation(_CHECK, name, f"expected files in {', '.join(_TOP)} alone"))
    if not wheel.binaries:
        violations.append(Violation(_CHECK, wheel.path.name, "expected a shared object, got none"))
    requires = wheel.metadata.requires_dist or []
    if not _same(requires, _REQUIRED):
        violations.append(
            Violation(
                _CHECK,
                "METADATA",
                f"Requires-Dist: expected {_names(_REQUIRED)}, got {_names(requires) or 'none'}",
            )
        )
    if wheel.metadata.requires_python != _PYTHON:
        violations.append(
            Violation(
                _CHECK,
                "METADATA",
                f"Requires-Python: expected {_PYTHON}, got {wheel.metadata.requires_python}",
            )
        )
    return violations


def check_size(name: str, size: int, max_mb: float) -> list[Violation]:
    """Check a file's size in bytes against ``max_mb`` (10^6 bytes)."""
    if size <= max_mb * 1e6:
        return []
    return [Violation(_CHECK, name, f"expected at most {max_mb:g} MB, got {size / 1e6:.2f} MB")]


def _same(first: Sequence[Requirement], second: Sequence[Requirement]) -> bool:
    return sorted(map(str, first)) == sorted(map(str, second))


def _names(requirements: Sequence[Requirement]) -> str:
    return ", ".join(sorted(map(str, requirements)))
