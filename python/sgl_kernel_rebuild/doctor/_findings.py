"""From facts to findings: what is wrong, why, and the one command that fixes it. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from sgl_kernel_rebuild.abi import Atlas
from sgl_kernel_rebuild.abi._demangle import demangle
from sgl_kernel_rebuild.abi.certificate import describe_releases
from sgl_kernel_rebuild.abi.gpu import find_code

from ._machine import Extension, Machine

__all__ = ["Finding", "Severity", "diagnose"]

Severity = Literal["error", "warning", "note"]
_ORDER = {"error": 0, "warning": 1, "note": 2}
_UNDEFINED = re.compile(r"undefined symbol: (\S+)")
_OURS = "pip install --upgrade --find-links wheelhouse sgl-kernel==0.3.7"
# The first release whose wheel on the package index has code for sm_120 (CUDA 12.8).
_FIRST_BLACKWELL = "2.8.0"


@dataclass(frozen=True)
class Finding:
    """``id`` is stable, for machines; ``fix`` is one command, or empty where there is nothing to do."""

    id: str
    severity: Severity
    title: str
    why: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """Return the finding as plain JSON types."""
        return asdict(self)


def diagnose(machine: Machine) -> list[Finding]:
    """Return what is wrong with ``machine``, the worst first; nothing where all is well."""
    found = [
        *_python(machine),
        *_driver(machine),
        *_torch(machine),
        *_extensions(machine),
        *_loader(machine),
        *_sglang(machine),
        *_imports(machine),
    ]
    return sorted(found, key=lambda item: _ORDER[item.severity])


def _python(machine: Machine) -> Iterable[Finding]:
    if Version(machine.python) < Version("3.10"):
        yield Finding(
            "python-too-old",
            "error",
            f"Python {machine.python} is older than 3.10",
            "sgl-kernel and the current releases of torch need Python 3.10 or newer.",
            "apt-get install python3.12-venv",
        )


def _driver(machine: Machine) -> Iterable[Finding]:
    if machine.driver is None:
        yield Finding(
            "driver-missing",
            "note",
            "no NVIDIA driver answers",
            f"NVML says: {machine.driver_error or 'nothing'}. In a container the driver is the host's: start"
            " it with its GPUs (--gpus all). CPU-only work needs none.",
            "nvidia-smi",
        )
        return
    if not machine.gpus:
        yield Finding(
            "gpu-missing",
            "warning",
            "the driver sees no GPU",
            f"Driver {machine.driver.version} answers, but lists no device; a container may have been given"
            " none.",
            "nvidia-smi -L",
        )
    cuda = machine.torch.cuda if machine.torch else None
    if cuda is None:
        return
    wanted, have = Version(cuda), Version(machine.driver.cuda)
    if wanted.major > have.major:
        yield Finding(
            "driver-too-old",
            "error",
            f"the driver supports CUDA {have}, torch was built with {wanted}",
            "A driver runs every CUDA up to its own major version. torch reports this as 'The NVIDIA driver"
            " on your system is too old', or as no GPU at all.",
            "apt-get install --only-upgrade 'nvidia-driver-*'",
        )
    elif wanted > have:
        yield Finding(
            "driver-older-minor",
            "note",
            f"the driver supports CUDA {have}, torch was built with {wanted}",
            "Machine code of one major version runs (minor version compatibility); PTX made by the newer"
            " compiler does not, so kernels compiled at run time may fail.",
            "apt-get install --only-upgrade 'nvidia-driver-*'",
        )


def _torch(machine: Machine) -> Iterable[Finding]:
    torch = machine.torch
    if torch is None:
        yield Finding(
            "torch-missing",
            "warning",
            "torch is not installed in this Python",
            "Extensions can be audited against every release, but not imported.",
            "pip install 'torch>=2.7.0'",
        )
        return
    if torch.error:
        yield Finding(
            "torch-import",
            "error",
            f"torch {torch.version} does not import",
            torch.error,
            f"pip install --force-reinstall torch=={torch.version}",
        )
        return
    if machine.gpus and torch.cuda is None and torch.hip is None:
        yield Finding(
            "torch-cpu-only",
            "error",
            f"torch {torch.version} is a CPU-only build, but there is a GPU",
            "torch.cuda.is_available() is False with it, whatever the driver.",
            f"pip install --force-reinstall torch=={Version(torch.version).public}",
        )
    if torch.cxx11_abi is False:
        yield Finding(
            "torch-old-cxx-abi",
            "warning",
            f"torch {torch.version} was built with the old C++ ABI",
            "Names with std::string in them differ (no __cxx11): extensions built for the new ABI do not"
            " load.",
            "pip install --upgrade 'torch>=2.7.0'",
        )
    if torch.cuda is None or not torch.targets:
        return
    for capability, name in _distinct_gpus(machine):
        if not find_code(torch.targets, capability):
            yield Finding(
                f"torch-no-code-sm_{capability}",
                "error",
                f"torch {torch.version} (CUDA {torch.cuda}) has no code for the {name} (sm_{capability})",
                f"It carries {', '.join(torch.targets)}: every CUDA operation of torch fails with 'no kernel"
                " image is available'. This is not a matter of the driver. The torch 2.7.0 of the package"
                " index is built with CUDA 12.6, which knows no sm_120; 2.8.0 was the first there with it,"
                " and PyTorch's own index has a cu128 build of 2.7.0.",
                f"pip install --upgrade 'torch>={_FIRST_BLACKWELL}'",
            )


def _extensions(machine: Machine) -> Iterable[Finding]:
    for item in machine.extensions:
        if item.error:
            file = _file(item)
            yield Finding(
                f"extension-unreadable:{item.distribution}:{file}",
                "error",
                f"{item.distribution} {item.version}: {file} cannot be read",
                item.error,
                f"pip install --force-reinstall {item.distribution}=={item.version}",
            )
    # What is installed, and reinstalled, is a distribution: one finding for each, whatever it has of files.
    found: dict[str, list[Extension]] = {}
    for item in machine.extensions:
        if not item.error:
            found.setdefault(item.distribution, []).append(item)
    for items in found.values():
        yield from _torch_of(items, machine)
        for capability, name in _distinct_gpus(machine):
            yield from _code_of(items, capability, name)


def _torch_of(items: list[Extension], machine: Machine) -> Iterable[Finding]:
    wrong = [item for item in items if item.missing]
    if not wrong or machine.torch is None:
        return
    first = wrong[0]
    assert first.missing is not None
    symbol, declaration, history = first.missing[0]
    others = {entry[0] for item in wrong for entry in item.missing or ()} - {symbol}
    more = f" and {len(others)} more" if others else ""
    common = [release for release in first.fits if all(release in item.fits for item in items)]
    fits = f"torch {describe_releases(common, Atlas.load().releases)}" if common else "no torch in the atlas"
    yield Finding(
        f"extension-abi:{first.distribution}",
        "error",
        f"{first.distribution} {first.version} was not built for torch {machine.torch.version}",
        f"{_files(wrong)} {'needs' if len(wrong) == 1 else 'need'} {declaration}{more} ({history}); it fits"
        f" {fits}. Importing it ends in 'undefined symbol: {symbol}'.",
        _OURS if first.distribution == "sgl-kernel" else _refit(first, common, machine),
    )


def _code_of(items: list[Extension], capability: str, name: str) -> Iterable[Finding]:
    code = {item.path: find_code(item.targets, capability) for item in items if item.targets}
    none = [item for item in items if item.path in code and not code[item.path]]
    compiled = [item for item in items if (code.get(item.path) or "").startswith("compute")]
    named = f"{items[0].distribution} {items[0].version}"
    if none:
        carried = ", ".join(dict.fromkeys(target for item in none for target in item.targets))
        yield Finding(
            f"extension-no-code-sm_{capability}:{items[0].distribution}",
            "error",
            f"{named} has no code for the {name} (sm_{capability})",
            f"{_files(none)} {'carries' if len(none) == 1 else 'carry'} {carried}: the kernels fail with 'no"
            " kernel image is available for execution on the device', whatever the torch.",
            _OURS if items[0].distribution == "sgl-kernel" else _from_source(items[0]),
        )
    if compiled:
        yield Finding(
            f"extension-ptx-sm_{capability}:{items[0].distribution}",
            "note",
            f"{named}: the driver compiles PTX ({code[compiled[0].path]}) for the {name} (sm_{capability})",
            f"{_files(compiled)} {'has' if len(compiled) == 1 else 'have'} no machine code for it: the first"
            " start is slow; the driver keeps the result.",
            "",
        )


def _file(item: Extension) -> str:
    return item.path.rpartition("/")[2]


def _files(items: list[Extension]) -> str:
    names = [_file(item) for item in items]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refit(item: Extension, common: list[str], machine: Machine) -> str:
    """Return the command that makes an extension and torch fit, and breaks no other extension.

    Where the extension's metadata says which torch it is for, pip finds the release of it for the torch that
    is here. Otherwise another torch will do if all else fits that, too; or else it is compiled.
    """
    assert machine.torch is not None
    torch = Version(machine.torch.version).public
    wanted = Requirement(item.requires_torch or "torch").specifier
    if not wanted.contains(torch, prereleases=True):
        return f"pip install torch=={torch} {item.distribution}"
    for release in reversed(common):
        if all(release in other.fits for other in machine.extensions if not other.error):
            return f"pip install torch=={release}"
    return _from_source(item)


def _from_source(item: Extension) -> str:
    """Return the command that compiles the extension for the torch and the GPU that are here."""
    return (
        "pip install --force-reinstall --no-deps --no-build-isolation --no-cache-dir"
        f" --no-binary {item.distribution} {item.distribution}=={item.version}"
    )


def _distinct_gpus(machine: Machine) -> list[tuple[str, str]]:
    return sorted({gpu.capability: gpu.name for gpu in machine.gpus}.items())


def _loader(machine: Machine) -> Iterable[Finding]:
    forced = [item for item in machine.libraries if item.source == "LD_LIBRARY_PATH"]
    for stem in ("libtorch", "libc10", "libcudart", "libnccl"):
        ahead = [item for item in forced if item.stem == stem]
        others = [item for item in machine.libraries if item.source == "packages" and item.stem == stem]
        if ahead and others:
            yield Finding(
                f"loader-{stem}",
                "error" if stem in ("libtorch", "libc10") else "warning",
                f"LD_LIBRARY_PATH puts another {stem} before the installed one",
                f"{ahead[0].path} is loaded in place of {others[0].path}: extensions then meet symbols of the"
                " wrong version, or two copies of one library.",
                "unset LD_LIBRARY_PATH",
            )
    majors = {
        match[1]: item.path
        for item in machine.libraries
        if item.source == "packages"
        and (match := re.fullmatch(r"libcudart(?:-[0-9a-f]+)?\.so\.(\d+).*", item.name))
    }
    if len(majors) > 1:
        yield Finding(
            "loader-cudart-majors",
            "note",
            f"CUDA runtimes of several major versions are installed: {', '.join(sorted(majors))}",
            "Each extension loads the one that it was linked with; they live side by side, but an extension"
            " built for one says nothing about the other.",
            "pip list | grep nvidia-cuda-runtime",
        )


def _sglang(machine: Machine) -> Iterable[Finding]:
    if not machine.sglang_wants:
        return
    wanted = Requirement(machine.sglang_wants)
    name = canonicalize_name(wanted.name)
    have = machine.distributions.get(name)
    sglang = machine.distributions.get("sglang", "")
    fix = _OURS if name == "sgl-kernel" and wanted.specifier.contains("0.3.7") else f"pip install '{wanted}'"
    if have is None:
        yield Finding(
            "sglang-kernel-missing",
            "error",
            f"SGLang {sglang} asks for {wanted}, which is not installed",
            "Its start ends in PackageNotFoundError or in a failed import of sgl_kernel.",
            fix,
        )
    elif Version(have) < min(
        (Version(item.version) for item in wanted.specifier if item.operator in ("==", ">=", "~=")),
        default=Version(have),
    ):
        yield Finding(
            "sglang-kernel-too-old",
            "error",
            f"SGLang {sglang} asks for {wanted}, got {have}",
            "It compares the version at its start and refuses an older one.",
            fix,
        )


def _imports(machine: Machine) -> Iterable[Finding]:
    for result in machine.imports:
        if not result.error:
            continue
        why = result.error
        if match := _UNDEFINED.search(result.error):
            symbol = match[1]
            atlas = Atlas.load()
            exports = atlas.exports(symbol)
            where = describe_releases(exports, atlas.releases) if exports else "no release in the atlas"
            why += f". That is {demangle(symbol)}, exported by torch {where}."
        elif match := re.search(r"No module named '(\w+)'", result.error):
            why += f". A module that it imports, {match[1]}, is not installed."
        elif "libcudart" in result.error or "cannot open shared object" in result.error:
            why += ". It was linked with a CUDA runtime that is not installed here."
        yield Finding(f"import:{result.module}", "error", f"{result.module} does not import", why, _OURS)
