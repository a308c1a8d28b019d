"""Judges a report: what is wrong with a binary, for the releases and GPUs that were asked about."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag
from packaging.version import Version

from sgl_kernel_rebuild.abi._elffile import version_key
from sgl_kernel_rebuild.abi.certificate import describe_releases
from sgl_kernel_rebuild.wheel.tags import glibc_of

from ._report import AuditReport

__all__ = ["EXIT_CODES", "Finding", "find"]

EXIT_CODES = {"torch": 10, "gpu": 11, "tag": 12, "python": 13}
"""By kind of finding; a command that has several ends with the lowest. ``note`` changes no exit code."""

_FAMILIES = ("GLIBC", "GLIBCXX", "CXXABI", "GCC")
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """``kind`` is one of `EXIT_CODES` or ``note``; ``where`` is a shared object or METADATA."""

    kind: str
    where: str
    message: str

    def to_json(self) -> dict[str, str]:
        """Return the finding as plain JSON types."""
        return asdict(self)


def find(report: AuditReport, releases: Collection[str], gpus: Iterable[str]) -> list[Finding]:
    """Return what is wrong with ``report`` for torch ``releases`` and GPU capabilities (``120``).

    Order: torch, GPU, tags, Python, notes.
    """
    return [
        *_torch(report, releases),
        *_gpus(report, gpus),
        *_platforms(report),
        *_python(report),
        *_requirement(report),
    ]


def _torch(report: AuditReport, releases: Collection[str]) -> Iterable[Finding]:
    for item in report.certificate.objects:
        misfits = [release for release in releases if item.missing.get(release)]
        if misfits:
            first = item.missing[misfits[0]][0]
            count = len(item.missing[misfits[0]])
            more = f" and {count - 1} more" if count > 1 else ""
            yield Finding(
                "torch",
                item.name,
                f"does not load under torch {describe_releases(misfits, report.certificate.releases)}:"
                f" {misfits[0]} lacks {first.demangled}{more}",
            )


def _gpus(report: AuditReport, gpus: Iterable[str]) -> Iterable[Finding]:
    for gpu in gpus:
        for name, code in report.code_for(gpu).items():
            if not code:
                have = ", ".join(report.code[name])
                yield Finding("gpu", name, f"no code for sm_{gpu}: it carries {have}")


def _platforms(report: AuditReport) -> Iterable[Finding]:
    """Hold what each shared object asks of the system against the lowest promise of the platform tags."""
    promises = {tag.platform: promise for tag in report.tags if (promise := glibc_of(tag.platform))}
    if not promises:
        return
    platform, glibc = min(promises.items(), key=lambda item: version_key(item[1]))
    for item in report.certificate.objects:
        floors = {family: floor for family in _FAMILIES if (floor := item.shared_object.floor(family))}
        limits = {"GLIBC": glibc} if floors.keys() <= {"GLIBC"} else _limits(glibc)
        broken = [
            family
            for family, floor in floors.items()
            if family in limits and version_key(floor) > version_key(limits[family])
        ]
        if broken:
            needs = ", ".join(f"{family}_{floors[family]}" for family in broken)
            allowed = ", ".join(f"{family}_{limits[family]}" for family in broken)
            yield Finding("tag", item.name, f"needs {needs}; {platform} promises {allowed} at most")


@functools.cache
def _limits(glibc: str) -> dict[str, str]:
    """Return the highest versions that a manylinux tag of ``glibc`` allows, by auditwheel's policies."""
    from auditwheel.architecture import Architecture
    from auditwheel.libc import Libc
    from auditwheel.policy import WheelPolicies

    policies = [
        (policy.name.removeprefix("manylinux_").removesuffix("_x86_64").replace("_", "."), policy)
        for policy in WheelPolicies(libc=Libc.GLIBC, arch=Architecture.x86_64)
        if policy.name.startswith("manylinux_")
    ]
    fitting = [item for item in policies if version_key(item[0]) <= version_key(glibc)] or policies[-1:]
    _, policy = max(fitting, key=lambda item: version_key(item[0]))
    limits = {}
    for family in _FAMILIES:
        versions = [version for version in policy.symbol_versions.get(family, ()) if version[:1].isdigit()]
        if versions:
            limits[family] = max(versions, key=version_key)
    return {**limits, "GLIBC": glibc}


def _python(report: AuditReport) -> Iterable[Finding]:
    for name, abi in sorted(report.python.items()):
        if abi.claims == "abi3" and abi.unstable:
            yield Finding(
                "python", name, f"is named abi3 and uses what no stable ABI has: {_first(abi.unstable)}"
            )
        for tag in sorted(report.tags, key=str):
            if message := _against(tag, abi.claims, abi.uses_api, abi.floor):
                yield Finding("python", name, message)
                break


def _against(tag: Tag, claims: str, uses_api: bool, floor: str) -> str:
    """Return how a shared object breaks the promise of a Python tag; "" where it keeps it."""
    version = _version_of(tag.interpreter)
    if claims not in ("", "abi3"):
        if tag.abi in ("abi3", "none"):
            return f"is for CPython {claims} alone, in a wheel tagged {tag.interpreter}-{tag.abi}"
        if version and claims != version:
            return f"is for CPython {claims}, in a wheel tagged {tag.interpreter}-{tag.abi}"
    if claims == "abi3" and version and floor and version_key(floor) > version_key(version):
        return f"uses the stable ABI of Python {floor}, in a wheel for {version} and later"
    if tag.abi == "none" and claims == "" and uses_api and tag.interpreter.startswith("py"):
        return f"uses Python's C API, in a wheel tagged {tag.interpreter}-none; its name claims no abi3"
    return ""


def _version_of(interpreter: str) -> str:
    """``cp310`` is ``3.10``; ``py3`` names no version."""
    digits = interpreter[2:]
    return f"{digits[0]}.{digits[1:]}" if interpreter.startswith("cp") and len(digits) > 1 else ""


def _requirement(report: AuditReport) -> Iterable[Finding]:
    certificate = report.certificate
    if report.requires_torch is None or not any(item.torch_symbols for item in certificate.objects):
        return
    try:
        specifier = Requirement(report.requires_torch).specifier
    except InvalidRequirement:
        return
    admitted = [release for release in certificate.releases if specifier.contains(Version(release))]
    wrong = [release for release in admitted if release not in certificate.fits]
    if wrong:
        yield Finding(
            "note",
            "METADATA",
            f"asks for {report.requires_torch}, which admits torch"
            f" {describe_releases(wrong, certificate.releases)}: pip installs what does not load",
        )


def _first(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
