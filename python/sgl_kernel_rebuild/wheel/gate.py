"""The gate: a raw wheel goes in; a proven one, which carries its proofs, comes out, or none."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgl_kernel_rebuild.abi import Atlas, Certificate, certify
from sgl_kernel_rebuild.abi._elffile import SharedObject
from sgl_kernel_rebuild.abi.certificate import OLDEST
from sgl_kernel_rebuild.errors import BinaryError, GateError

from .api import ApiReport, check_api
from .archive import Wheel, open_wheel
from .coverage import BUILD_RECORD, Coverage, DeviceCode, check_coverage, read_device_code
from .policy import check_contents, check_policy, check_size
from .repack import repack, source_date_epoch
from .repair import repair
from .sbom import SBOM, make_sbom
from .tags import TagReport, check_tags
from .violation import Violation

__all__ = ["API", "CERTIFICATE", "COVERAGE", "GateReport", "Inspection", "inspect_wheel", "run_gate"]

CERTIFICATE = "sgl_kernel/abi_certificate.json"
COVERAGE = "sgl_kernel/coverage.json"
API = "sgl_kernel/api.json"


@dataclass(frozen=True)
class Inspection:
    """What the checks found, and which promises the wheel breaks (none, if it is sound)."""

    certificate: Certificate
    tags: TagReport
    coverage: Coverage
    api: ApiReport
    violations: tuple[Violation, ...] = field(default=())


@dataclass(frozen=True)
class GateReport:
    """A proven wheel. ``content`` is the hash of its RECORD: its identity whatever the compression."""

    wheel: Path
    sha256: str
    content: str
    size: int
    inspection: Inspection

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {
            "wheel": self.wheel.name,
            "sha256": self.sha256,
            "content": self.content,
            "size": self.size,
            "tags": self.inspection.tags.to_json(),
            "abi": self.inspection.certificate.to_json(),
            "coverage": self.inspection.coverage.to_json(),
            "api": self.inspection.api.to_json(),
        }


def run_gate(
    raw_wheel: Path, dest: Path, *, max_mb: float = 10, newest_glibc: str = "2.28", oldest_torch: str = OLDEST
) -> GateReport:
    """Repair ``raw_wheel``, prove it, put the proofs into it and the result into the folder ``dest``.

    ``raw_wheel`` is left as it is. The result appears in ``dest`` whole or not at all.

    Raises:
        GateError: the wheel breaks one promise or more; the message lists every violation.
        BinaryError: the wheel, or a binary in it, cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="sglk-gate-") as folder:
        scratch = Path(folder)
        with open_wheel(raw_wheel) as raw:  # auditwheel would write a RECORD that hides what is wrong with it
            violations = raw.check_record()
        _refuse_if(raw_wheel, violations)
        (scratch / "repaired").mkdir()
        repaired = repair(raw_wheel, scratch / "repaired")
        result = scratch / repaired.name
        with open_wheel(repaired) as wheel:
            inspection = inspect_wheel(wheel, newest_glibc=newest_glibc, oldest_torch=oldest_torch)
            _refuse_if(raw_wheel, inspection.violations)
            content = repack(wheel, _proofs(wheel, inspection), result)
        size = result.stat().st_size
        violations = check_size(result.name, size, max_mb)
        with open_wheel(result) as wheel:
            violations += wheel.check_record()
        _refuse_if(raw_wheel, violations)
        digest = hashlib.sha256(result.read_bytes()).hexdigest()
        return GateReport(_publish(result, dest), digest, content, size, inspection)


def inspect_wheel(wheel: Wheel, *, newest_glibc: str = "2.28", oldest_torch: str = OLDEST) -> Inspection:
    """Run every check on a repaired wheel; return all they found, sorted.

    Raises:
        BinaryError: the wheel, or a binary in it, cannot be read.
    """
    objects: list[SharedObject] = []
    code: list[DeviceCode] = []
    registered: set[str] = set()
    for item, stream in wheel.shared_objects():
        objects.append(item)
        found, names = read_device_code(item, stream, f"{wheel.path.name}: {item.name}")
        code += found
        registered |= names
    subject = f"{wheel.name} {wheel.version}"
    certificate = certify(subject, objects)
    tags, violations = check_tags(wheel, objects, newest_glibc=newest_glibc)
    coverage, more = check_coverage(wheel, code, registered)
    api, broken = check_api(wheel)
    violations += more + broken
    violations += wheel.check_record() + check_policy(objects) + check_contents(wheel)
    violations += _check_abi(certificate, oldest_torch)
    return Inspection(certificate, tags, coverage, api, tuple(sorted(set(violations))))


def _check_abi(certificate: Certificate, oldest: str) -> Iterable[Violation]:
    for release in Atlas.load().from_release(oldest):
        for missing in certificate.missing(release):
            message = f"does not export {missing.demangled} ({missing.history})"
            yield Violation("abi", f"torch {release}", message)


def _proofs(wheel: Wheel, inspection: Inspection) -> dict[str, bytes]:
    record = json.loads(wheel.read_text(f"{wheel.dist_info}/{BUILD_RECORD}"))
    try:
        sbom = make_sbom(
            wheel.name,
            str(wheel.version),
            record,
            {name: wheel.read(name) for name in wheel.binaries},
            epoch=source_date_epoch(),
        )
    except (KeyError, TypeError, AttributeError) as err:
        raise BinaryError(
            f"sbom: {wheel.path.name}: {BUILD_RECORD}: {type(err).__name__}: {err}\nBuild the wheel again."
        ) from err
    documents = {
        CERTIFICATE: _json(inspection.certificate.to_json()),
        COVERAGE: _json(inspection.coverage.to_json()),
        API: _json(inspection.api.to_json()),
        SBOM: sbom,
    }
    return {f"{wheel.dist_info}/{name}": data for name, data in documents.items()}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _refuse_if(wheel: Path, violations: Iterable[Violation]) -> None:
    found = sorted(violations)
    if found:
        lines = "\n".join(f"  {violation}" for violation in found)
        count = "1 violation" if len(found) == 1 else f"{len(found)} violations"
        raise GateError(
            f"gate: {wheel}: {count}, nothing was written:\n{lines}\nCorrect the source and build again."
        )


def _publish(result: Path, dest: Path) -> Path:
    """Copy ``result`` into ``dest`` under a temporary name on the same file system, then rename it."""
    target = dest / result.name
    try:
        dest.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{result.name}.", dir=dest)
        try:
            with os.fdopen(handle, "wb") as copy, result.open("rb") as source:
                shutil.copyfileobj(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as err:
        raise GateError(
            f"gate: {target}: cannot be written: {err.strerror or err}\nName a folder that can be written."
        ) from err
    return target
