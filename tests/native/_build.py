"""Compiles csrc with the fake torch and the fake driver of ``cpp/`` into the Python module ``native``."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
CPP = Path(__file__).resolve().parent / "cpp"
FAMILIES = sorted(path.stem for path in (CSRC / "ops").glob("*.cpp"))

WARNINGS = ["-std=c++20", "-Wall", "-Wextra", "-Werror"]
# Without -fno-gnu-unique, copies of the module in one process would share the runtime's static state.
FLAGS = [*WARNINGS, "-O0", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"]
SANITIZER = ["-g1", "-fsanitize=undefined"]
UNSANITIZED = {"fake_driver.cpp", "fake_torch.cpp", "module.cpp"}  # nothing of csrc is tested in them
# Linked statically, the sanitizer calls the module's own hooks.
LINK_FLAGS = ["-shared", "-fsanitize=undefined", "-static-libubsan", "-Wl,--exclude-libs,ALL"]
# Calls that the fakes answer: what of CUDA there is, and who frees torch's optional slots (operator delete).
WRAPPED = ["dlopen", "dlsym", "dlerror", "_ZdlPv", "_ZdlPvm"]


class CompilerError(Exception):
    """The compiler's command and everything it said."""


def run_compiler(arguments: list[str]) -> None:
    command = ["g++", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise CompilerError(f"{shlex.join(command)}\n{done.stdout}")


def include_flags() -> list[str]:
    cuda = importlib.util.find_spec("nvidia.cuda_runtime")
    if cuda is None or not cuda.submodule_search_locations:
        raise CompilerError("cuda.h: not found; install nvidia-cuda-runtime-cu12 as pyproject.toml pins it")
    system = [
        os.path.join(cuda.submodule_search_locations[0], "include"),
        pybind11.get_include(),
        sysconfig.get_paths()["include"],
    ]
    return [f"-I{CSRC}", f"-I{CPP}", *(f"-isystem{path}" for path in system)]


def build(folder: Path) -> Path:
    """Return the module; raises CompilerError with what the compiler said."""
    sources = sorted([*CSRC.glob("runtime/*.cpp"), *CSRC.glob("ops/*.cpp"), *CPP.glob("*.cpp")])
    sources.sort(key=lambda source: "bindings.h" not in source.read_text())  # the longest first
    flags = [
        *FLAGS,
        *include_flags(),
        "-DSGLK_HAS_SM90A=1",
        f"-DSGLK_FAMILIES={' '.join(f'X({family})' for family in FAMILIES)}",
    ]
    objects = [folder / f"{source.parent.name}_{source.stem}.o" for source in sources]
    jobs = [
        [*flags, *([] if source.name in UNSANITIZED else SANITIZER), "-c", str(source), "-o", str(target)]
        for source, target in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run_compiler, jobs))
    library = folder / f"native{sysconfig.get_config_var('EXT_SUFFIX')}"
    wraps = [f"-Wl,--wrap={symbol}" for symbol in WRAPPED]
    run_compiler([*LINK_FLAGS, *wraps, *map(str, objects), "-o", str(library)])
    return library
