"""The auditor: what any torch extension, as a file, a wheel or a list of symbols, needs and carries."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sgl_kernel_rebuild.abi import Certificate, certify
from sgl_kernel_rebuild.abi._elffile import SharedObject, is_elf, read_shared_object
from sgl_kernel_rebuild.abi._fatbin import iter_code
from sgl_kernel_rebuild.abi.certificate import read_symbol_list
from sgl_kernel_rebuild.errors import BinaryError

from .archive import open_wheel

__all__ = ["AuditReport", "audit"]

_CUDA_RUNTIME = re.compile(r"libcudart\.so\.(\d+)")
_TARGET = re.compile(r"(sm|compute)_(\d+)(\w*)")
# What other systems' binaries begin with; a list of symbols begins with none of them.
_BINARY_HEADS = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"!<arch>")


@dataclass(frozen=True)
class AuditReport:
    """``code`` maps each shared object, but no list of symbols, to its targets, such as ``sm_90a``."""

    certificate: Certificate
    code: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def cuda_runtimes(self) -> dict[str, str]:
        """The CUDA major version of each shared object that needs libcudart."""
        return {
            report.name: match[1]
            for report in self.certificate.objects
            for name in report.shared_object.needed
            if (match := _CUDA_RUNTIME.match(name))
        }

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        report = self.certificate.to_json()
        for item in report["objects"]:
            item["code"] = list(self.code[item["name"]]) if item["name"] in self.code else None
            item["cuda_runtime"] = self.cuda_runtimes.get(item["name"])
        return report


def audit(path: str | os.PathLike[str], *, releases: Sequence[str] | None = None) -> AuditReport:
    """Audit a shared object, a wheel, or a text file that lists undefined symbols.

    ``releases`` are the torch releases to compare with; by default all of the atlas.

    Raises:
        BinaryError: the file cannot be read or is none of these.
    """
    source = Path(path)
    try:
        with source.open("rb") as stream:
            head = stream.read(64)
    except OSError as err:
        raise BinaryError(
            f"audit: {source}: cannot be read: {err.strerror or err}\nName a readable file."
        ) from err
    if source.suffix == ".whl":
        return _audit_wheel(source, releases)
    if is_elf(head) or head.startswith(_BINARY_HEADS) or not head or ".so" in source.suffixes:
        return _audit_object(source, releases)
    listed = read_symbol_list(source)
    return AuditReport(certify(source.name, [listed], releases=releases, has_needed=False))


def _audit_object(path: Path, releases: Sequence[str] | None) -> AuditReport:
    with path.open("rb") as stream:
        found = read_shared_object(stream, str(path))
        code = {found.name: _targets(found, stream, str(path))}
    return AuditReport(certify(path.name, [found], releases=releases), code)


def _audit_wheel(path: Path, releases: Sequence[str] | None) -> AuditReport:
    objects, code = [], {}
    with open_wheel(path) as wheel:
        for found, stream in wheel.shared_objects():
            objects.append(found)
            code[found.name] = _targets(found, stream, f"{path.name}: {found.name}")
        subject = f"{wheel.name} {wheel.version}"
    return AuditReport(certify(subject, objects, releases=releases), code)


def _targets(found: SharedObject, stream: BinaryIO, name: str) -> tuple[str, ...]:
    targets = {
        code.target for code in iter_code(stream, found.sections, name) if code.kind in ("cubin", "ptx")
    }
    return tuple(sorted(targets, key=_order))


def _order(target: str) -> tuple[str, int, str]:
    match = _TARGET.fullmatch(target)
    # Machine code before PTX, small before large.
    return ("0" if target.startswith("sm") else "1", int(match[2]) if match else 0, target)
