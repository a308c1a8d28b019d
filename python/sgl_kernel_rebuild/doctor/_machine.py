"""The facts: Python, torch, driver, GPUs, installed torch extensions, libraries on the loader's path."""

from __future__ import annotations

import importlib.metadata
import json
import mmap
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from sgl_kernel_rebuild.errors import BinaryError

from ._gpus import Driver, Gpu, ask_driver

__all__ = ["Extension", "ImportResult", "Library", "Machine", "Torch", "examine"]

_TIMEOUT = 180
"""Seconds for one import in a process of its own; torch takes up to a minute from a cold disk."""
_TORCH_MARK = re.compile(rb"libtorch|libc10|aoti_torch_|_ZN3c10|_ZN2at")
_SHARED_OBJECT = re.compile(r"\.so(?:\.\d+)*$")
_LIBRARY = re.compile(r"(libcudart|libtorch|libc10|libnccl|libcuda)(?:-[0-9a-f]+)?\.so(?:\.[\d.]+)?")
# Their libraries are torch's own, or nothing that torch could break.
_NOT_EXTENSIONS = re.compile(r"torch|triton|nvidia-.*|numpy|scipy|cuda-.*")
_ASK_TORCH = """
import json, torch
try:
    flags = torch._C._cuda_getArchFlags() or ""
except AttributeError:
    flags = ""
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "hip": getattr(torch.version, "hip", None),
    "cxx11_abi": torch.compiled_with_cxx11_abi(), "targets": flags.split(),
}))
"""


@dataclass(frozen=True)
class Torch:
    """The installed torch. ``error`` is what its import said if it failed; the rest is then from metadata."""

    version: str
    cuda: str | None = None
    hip: str | None = None
    cxx11_abi: bool | None = None
    targets: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Extension:
    """One installed shared object that uses torch.

    ``missing`` holds (symbol, what it stands for, its history) for each symbol that the installed torch
    lacks; None where that torch is not in the atlas or not installed. ``requires_torch`` is
    the requirement in its distribution's metadata, such as ``torch==2.11.0``; empty where there is none.
    """

    distribution: str
    version: str
    path: str
    fits: tuple[str, ...]
    missing: tuple[tuple[str, str, str], ...] | None
    targets: tuple[str, ...]
    cuda_runtime: str | None
    error: str = ""
    requires_torch: str = ""


@dataclass(frozen=True)
class Library:
    """A library that the dynamic loader can meet; ``source`` is LD_LIBRARY_PATH, ldconfig or packages."""

    name: str
    path: str
    source: str

    @property
    def stem(self) -> str:
        """The name without version and hash: ``libcudart``."""
        return re.split(r"[.-]", self.name, maxsplit=1)[0]


@dataclass(frozen=True)
class ImportResult:
    """An import in a process of its own; ``error`` is the last line that it printed, empty if it worked."""

    module: str
    error: str


@dataclass(frozen=True)
class Machine:
    """What was found; None where there is nothing."""

    python: str
    platform: str
    glibc: str
    torch: Torch | None = None
    driver: Driver | None = None
    driver_error: str = ""
    gpus: tuple[Gpu, ...] = ()
    extensions: tuple[Extension, ...] = ()
    libraries: tuple[Library, ...] = ()
    imports: tuple[ImportResult, ...] = ()
    distributions: dict[str, str] = field(default_factory=dict)
    sglang_wants: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return asdict(self)


def examine() -> Machine:
    """Look at this machine and this Python; nothing is changed.

    torch and sgl_kernel are imported in processes of their own.
    """
    from sgl_kernel_rebuild.abi import Atlas

    distributions = _distributions()
    torch = _torch(distributions.get("torch"))
    atlas = Atlas.load()
    release = None
    if torch is not None:
        try:
            release = atlas.resolve(torch.version)
        except BinaryError:
            release = None
    driver, driver_error, gpus = ask_driver()
    watched = ("sglang", "sgl-kernel", "sglang-kernel", "torch", "triton", "flashinfer-python", "vllm")
    return Machine(
        python=platform.python_version(),
        platform=platform.platform(),
        glibc=" ".join(platform.libc_ver()),
        torch=torch,
        driver=driver,
        driver_error=driver_error,
        gpus=gpus,
        extensions=tuple(_extensions(release)),
        libraries=tuple(_libraries()),
        imports=_imports(distributions),
        distributions={name: distributions[name] for name in watched if name in distributions},
        sglang_wants=_sglang_wants(),
    )


def _distributions() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a broken installation leaves a folder without metadata
            found.setdefault(canonicalize_name(name), distribution.version)
    return found


def _run(code: str) -> tuple[str, str]:
    """Return what ``code`` printed in a process of its own, and its last line of complaint if it failed."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {_TIMEOUT} s"
    except OSError as err:
        return "", str(err)
    if result.returncode == 0:
        return result.stdout, ""
    if result.returncode < 0:
        return "", f"ended by signal {-result.returncode}"
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    # The exception's own line, not the advice that may follow it.
    errors = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Interrupt)\b", line)]
    return "", (errors or lines or [f"exit code {result.returncode}"])[-1]


def _torch(version: str | None) -> Torch | None:
    if version is None:
        return None
    output, error = _run(_ASK_TORCH)
    if error:
        return Torch(version, error=error)
    facts = json.loads(output.splitlines()[-1])
    return Torch(**{**facts, "targets": tuple(facts["targets"])})


def _extensions(release: str | None) -> Iterator[Extension]:
    from sgl_kernel_rebuild.audit import torch_requirement

    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"] or "")
        if not name or _NOT_EXTENSIONS.fullmatch(name):
            continue
        wanted = torch_requirement(distribution.requires or ()) or ""
        for file in distribution.files or ():
            if _SHARED_OBJECT.search(file.name):
                path = Path(str(distribution.locate_file(file)))
                if _uses_torch(path):
                    found = _extension(name, distribution.version, path, release)
                    yield replace(found, requires_torch=wanted)


def _uses_torch(path: Path) -> bool:
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data[:4] == b"\x7fELF" and _TORCH_MARK.search(data) is not None
    except (OSError, ValueError):  # ValueError: an empty file cannot be mapped
        return False


def _extension(name: str, version: str, path: Path, release: str | None) -> Extension:
    from sgl_kernel_rebuild.audit import audit

    try:
        (report,) = audit(path)
    except BinaryError as err:
        return Extension(name, version, str(path), (), None, (), None, str(err).splitlines()[0])
    certificate = report.certificate
    (item,) = certificate.objects
    missing = None
    if release is not None:
        found = certificate.missing(release)
        missing = tuple((need.symbol, need.demangled, need.history) for need in found)
    return Extension(
        distribution=name,
        version=version,
        path=str(path),
        fits=certificate.fits,
        missing=missing,
        targets=report.code.get(item.name, ()),
        cuda_runtime=report.cuda_runtimes.get(item.name),
    )


def _libraries(environment: Mapping[str, str] = os.environ) -> Iterator[Library]:
    seen: set[str] = set()
    places = [
        (Path(folder), "LD_LIBRARY_PATH") for folder in environment.get("LD_LIBRARY_PATH", "").split(":")
    ]
    for entry in map(Path, sys.path):
        places += [(entry / "torch" / "lib", "packages")]
        places += [(folder, "packages") for folder in sorted(entry.glob("nvidia/*/lib"))]
    for folder, source in places:
        if str(folder) in ("", "."):
            continue
        try:
            names = sorted(item.name for item in folder.iterdir())
        except OSError:
            continue
        for name in names:
            path = str(folder / name)
            if _LIBRARY.fullmatch(name) and path not in seen:
                seen.add(path)
                yield Library(name, path, source)
    for name, path in _ldconfig():
        if path not in seen:
            seen.add(path)
            yield Library(name, path, "ldconfig")


def _ldconfig() -> Iterator[tuple[str, str]]:
    for command in ("ldconfig", "/sbin/ldconfig"):
        try:
            output = subprocess.run(
                [command, "-p"], capture_output=True, text=True, timeout=20, check=False
            ).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        for line in output.splitlines():
            name, _, path = line.strip().partition(" => ")
            name = name.partition(" ")[0]
            if path and _LIBRARY.fullmatch(name):
                yield name, path
        return


def _imports(distributions: Mapping[str, str]) -> tuple[ImportResult, ...]:
    if not {"sgl-kernel", "sglang-kernel"} & distributions.keys():
        return ()
    code = "import torch, sgl_kernel" if "torch" in distributions else "import sgl_kernel"
    return (ImportResult("sgl_kernel", _run(code)[1]),)


def _sglang_wants() -> str:
    """Return the requirement of the installed SGLang on its kernels, "" where it names none."""
    try:
        lines = importlib.metadata.requires("sglang") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) in ("sgl-kernel", "sglang-kernel"):
            return f"{requirement.name}{requirement.specifier}"
    return ""
