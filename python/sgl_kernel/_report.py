"""What this installation is and what it runs on: the facts that ``python -m sgl_kernel`` prints."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sgl_kernel._library import LIBRARY
from sgl_kernel._missing import missing
from sgl_kernel.version import __version__

# Documents in the wheel's dist-info folder: the build writes the last one, the gate the others.
CERTIFICATE = "sgl_kernel/abi_certificate.json"
COVERAGE = "sgl_kernel/coverage.json"
BUILD_RECORD = "sgl_kernel/build_record.json"


def collect() -> dict[str, Any]:
    """The whole report as plain JSON types; what is unknown is null."""
    distribution = _distribution()
    record = _load(BUILD_RECORD)
    architectures, ptx = record.get("architectures", []), record.get("ptx", [])
    compiler = record.get("device_compiler", {})
    return {
        "version": distribution.version if distribution else None,
        "api_level": __version__,
        "package": str(LIBRARY.parent),
        "library": str(LIBRARY),
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda},
        "driver": _driver(),
        "gpus": _gpus(architectures, ptx),
        "architectures": [f"sm_{arch}" for arch in architectures] + [f"compute_{arch}" for arch in ptx],
        "device_compiler": f"{compiler['name']} {compiler['version']}" if compiler else None,
        "cxx_compiler": record.get("cxx_compiler"),
        "abi": _load(CERTIFICATE).get("releases"),
        "has_coverage": bool(_load(COVERAGE)),
        "missing": missing(),
    }


def document(name: str) -> str | None:
    """The text of a document of the wheel; None if this installation does not carry it."""
    distribution = _distribution()
    return distribution.read_text(name) if distribution else None


def sbom() -> str | None:
    """The software bill of materials, which PEP 770 puts in ``<dist-info>/sboms``."""
    distribution = _distribution()
    for file in (distribution.files or []) if distribution else []:
        if file.parent.name == "sboms" and file.suffix == ".json":
            return file.read_text()
    return None


def machine_code(capability: tuple[int, int], architectures: Sequence[str], ptx: Sequence[str]) -> str | None:
    """The code that a GPU of this compute capability runs, ``sm_86`` say, or ``compute_120`` for PTX.

    Machine code for x.y runs on x.z with z >= y, and with the suffix ``a`` on x.y alone; PTX for x.y runs on
    all that is not older. Source: CUDA C++ Programming Guide, "Binary Compatibility", "PTX Compatibility".
    """
    fitting = []
    for kind, names in (("sm", architectures), ("compute", ptx)):
        for name in names:
            parts = re.fullmatch(r"(\d+)(\d)(a?)", name)
            if parts is None:
                continue
            target, is_specific = (int(parts[1]), int(parts[2])), bool(parts[3])
            is_compatible = target <= capability and (kind == "compute" or target[0] == capability[0])
            if target == capability or (is_compatible and not is_specific):
                fitting.append((kind == "sm", target, is_specific, f"{kind}_{name}"))
    return max(fitting)[-1] if fitting else None


def _distribution() -> metadata.Distribution | None:
    """The installed distribution that this very package belongs to."""
    try:
        distribution = metadata.distribution("sgl-kernel")
    except metadata.PackageNotFoundError:
        return None
    owned = Path(str(distribution.locate_file("sgl_kernel/__init__.py")))
    return distribution if owned.resolve() == LIBRARY.with_name("__init__.py").resolve() else None


def _load(name: str) -> dict[str, Any]:
    """A JSON document; empty if it is absent or unreadable."""
    try:
        value = json.loads(document(name) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _gpus(architectures: Sequence[str], ptx: Sequence[str]) -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        code = machine_code((major, minor), architectures, ptx)
        name = torch.cuda.get_device_name(index)
        gpus.append({"name": name, "capability": f"{major}.{minor}", "code": code})
    return gpus


def _driver() -> dict[str, str | None] | None:
    """The newest CUDA that the driver knows, and its release; None without a driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return {"cuda": f"{number.value // 1000}.{number.value % 1000 // 10}", "release": _driver_release()}


def _driver_release() -> str | None:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    text = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
    status = nvml.nvmlSystemGetDriverVersion(text, len(text))
    nvml.nvmlShutdown()
    return text.value.decode() if status == 0 else None
