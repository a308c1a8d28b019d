"""Loads the shared objects of a published wheel and holds the result against the audit.

What is loaded, in a process of its own, is each object that uses torch, after ``import torch``, with all
symbols bound at once, as Python imports extension modules; their Python code is not run. A CUDA library that
the object names is loaded before it, from this Python's packages or from a folder that the caller names.
Where there is no driver, libraries with the names that the objects ask of it stand in.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_kernel_rebuild.abi.certificate import ObjectReport
from sgl_kernel_rebuild.audit import audit
from sgl_kernel_rebuild.remote import choose_wheel, open_remote

__all__ = ["Comparison", "compare"]

_TIMEOUT = 300
_UNDEFINED = re.compile(r"undefined symbol: (\w+)")
_DRIVER = {
    "libcuda.so.1": re.compile(r"cu[A-Z]\w*").fullmatch,
    "libnvidia-ml.so.1": re.compile(r"nvml[A-Z]\w*").fullmatch,
}
"""The driver's libraries, and what their functions are called."""
_LOAD = """
import ctypes, os, sys, warnings
warnings.simplefilter("ignore")
import torch
*before, target = sys.argv[1:]
for path in before:
    try:
        ctypes.CDLL(path, mode=os.RTLD_GLOBAL)
    except OSError as err:
        print("before:", err, file=sys.stderr)
ctypes.CDLL(target, mode=os.RTLD_NOW)
os._exit(0)  # what the library does at exit is not the question
"""


@dataclass(frozen=True)
class Comparison:
    """One shared object. ``error`` is the loader's, "" if it loaded.

    ``verdict`` is ``fits`` or ``misses N``; ``agrees`` says whether loading bore it out; None where loading
    failed before it came to symbols of torch: a library of others that is not there.
    """

    name: str
    verdict: str
    error: str
    agrees: bool | None


def compare(requirement: str, torch: str, folder: Path, libraries: Sequence[Path] = ()) -> dict[str, Any]:
    """Audit the wheel that ``requirement`` names and load its objects under ``torch``, this Python's version.

    ``folder`` takes what is extracted; ``libraries`` are folders like site-packages, with further CUDA
    libraries. ``agrees`` of the wheel: it fits if and only if all of its objects load; None where that cannot
    be told.
    """
    (report,) = audit(requirement)
    wheel = choose_wheel(requirement)
    with open_remote(wheel) as archive:
        for name in archive.binaries:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open_seekable(name) as source, target.open("wb") as copy:
                while chunk := source.read(1 << 20):
                    copy.write(chunk)
    users = [item for item in report.certificate.objects if item.torch_symbols]
    stubs = _driver_stubs(users, folder)
    release = torch.partition("+")[0]
    places = [*libraries, *(Path(entry) for entry in sys.path)]
    # An object of the wheel may load another, whose missing symbols are then the ones that the loader names.
    missing = {need.symbol for need in report.certificate.missing(release)}
    results = [
        _compare(item, release, missing, folder, [*stubs, *_cuda_libraries(item, places)]) for item in users
    ]
    is_fit = all(item.verdict == "fits" for item in results)
    is_known = not is_fit or all(item.agrees is not None for item in results)
    has_loaded = all(not item.error for item in results)
    return {
        "wheel": wheel.filename,
        "torch": torch,
        "conclusion": report.certificate.conclusion,
        "fits": is_fit,
        "loads": has_loaded,
        "agrees": is_fit == has_loaded if is_known else None,
        "objects": [vars(item) for item in results],
    }


def _compare(
    item: ObjectReport, release: str, known: set[str], folder: Path, before: Iterable[Path]
) -> Comparison:
    missing = item.missing[release]
    verdict = f"misses {len(missing)}" if missing else "fits"
    command = [sys.executable, "-c", _LOAD, *map(str, before), str((folder / item.name).resolve())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode == 0:
        return Comparison(item.name, verdict, "", not missing)
    lines = [line for line in done.stderr.splitlines() if line.startswith("OSError")]
    error = (lines or done.stderr.splitlines() or [f"signal {-done.returncode}"])[-1]
    error = error.replace(f"{folder.resolve()}/", "")
    if match := _UNDEFINED.search(error):
        return Comparison(item.name, verdict, error, bool(missing) and match[1] in known)
    if "cannot open shared object file" in error:
        is_torch = "libc10_cuda" in error or "libtorch_cuda" in error
        return Comparison(item.name, verdict, error, True if is_torch and item.needs_cuda_torch else None)
    return Comparison(item.name, verdict, error, bool(missing))  # it crashed


def _cuda_libraries(item: ObjectReport, places: Sequence[Path]) -> list[Path]:
    """Return the files of the CUDA libraries that ``item`` names, dependencies first."""
    order = ("libcudart", "libnvJitLink", "libcublasLt", "libcublas", "libcusparse", "libnvrtc", "libnccl")
    found: list[Path] = []
    for stem in order:
        names = [name for name in item.shared_object.needed if name.startswith(f"{stem}.so")]
        if stem == "libcublas":  # it needs the other one, whether the object says so or not
            names = [wanted for name in names for wanted in (name.replace(stem, f"{stem}Lt"), name)]
        for name in names:
            files = (file for place in places for file in sorted(place.glob(f"nvidia/*/lib/{name}")))
            found += [file for file in files if file not in found][:1]
    return found


def _driver_stubs(items: Iterable[ObjectReport], folder: Path) -> list[Path]:
    """Return libraries with the driver's functions that ``items`` ask for, where there is no driver."""
    asked = {symbol.name for item in items for symbol in item.shared_object.undefined}
    stubs = []
    for name, is_one in _DRIVER.items():
        probe = [sys.executable, "-c", f"import ctypes; ctypes.CDLL('{name}')"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            continue
        source = folder / f"{name}.c"
        found = filter(is_one, sorted(asked))
        lines = [f"int {function}(void) {{ return 100; }}\n" for function in found]
        source.write_text("".join(lines) or "int none;\n")
        flags = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{name}"]
        subprocess.run(["gcc", *flags, "-o", str(folder / name), str(source)], check=True)
        stubs.append(folder / name)
    return stubs


def write(results: list[dict[str, Any]], command: str, path: Path) -> None:
    """Write results, with the command that made them, as JSON."""
    path.write_text(json.dumps({"command": command, "results": results}, indent=1) + "\n")
