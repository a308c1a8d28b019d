"""csrc/runtime/torch_shim.h declares torch's C functions as torch's own header does.

Both headers in one translation unit: where they disagree about a C function or a type, the compiler says so.
Against the torch that is installed, and against the newest release that the ABI certificate speaks of, whose
header comes from the package index.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from sgl_kernel_rebuild.abi.atlas import Atlas

CSRC = Path(__file__).resolve().parents[2] / "csrc"
OUR_HEADER = CSRC / "runtime" / "torch_shim.h"
TORCH_HEADER = "torch/csrc/inductor/aoti_torch/c/shim.h"
STREAM = "aoti_torch_get_current_cuda_stream"  # declared under USE_CUDA, found by name at run time
STANDARDS = ["c++17", "c++20"]

Compile = Callable[..., str]


def declared_names(header: str) -> list[str]:
    return re.findall(r"^\w+ (aoti_torch_\w+)\(", header, re.MULTILINE)


def extract_closure(wheel: ZipFile, header: str, folder: Path) -> None:
    """Extracts the header and whatever it includes, as far as the wheel has it."""
    prefix = "torch/include/"
    present = {name.removeprefix(prefix) for name in wheel.namelist() if name.startswith(prefix)}
    pending, done = [header], set()
    while pending:
        name = pending.pop()
        if name in done or name not in present:
            continue
        done.add(name)
        text = wheel.read(prefix + name).decode()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        pending += re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', text, re.MULTILINE)


@pytest.fixture(scope="session")
def newest_include(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The headers of the newest release in the atlas; any Python's wheel has them."""
    folder = tmp_path_factory.mktemp("newest")
    release = Atlas.load().releases[-1]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--no-cache-dir", "--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
    command += ["--platform=manylinux_2_28_x86_64", f"--dest={folder}", f"torch=={release}"]
    # A constraint of this machine says what to install; these headers are only read.
    subprocess.run(command, env={**os.environ, "PIP_CONSTRAINT": os.devnull}, check=True)
    (path,) = folder.glob("torch-*.whl")
    with ZipFile(path) as wheel:
        extract_closure(wheel, TORCH_HEADER, folder / "include")
    path.unlink()
    return folder / "include"


@pytest.fixture(params=["installed", "newest"])
def include(request: pytest.FixtureRequest) -> Path:
    if request.param == "newest":
        newest: Path = request.getfixturevalue("newest_include")
        return newest
    return Path(torch.__path__[0]) / "include"


@pytest.fixture
def errors(include: Path, tmp_path: Path) -> Compile:
    """Compiles torch's header and what follows it; returns what the compiler finds wrong with that."""

    def compile_source(source: str, standard: str = STANDARDS[-1]) -> str:
        unit = tmp_path / "unit.cpp"
        unit.write_text(f"#define USE_CUDA 1\n#include <{TORCH_HEADER}>\n#include <type_traits>\n{source}\n")
        command = [
            "g++",
            "-fsyntax-only",
            f"-std={standard}",
            "-isystem",
            str(include),
            "-I",
            str(CSRC),
            str(unit),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "error: " in done.stderr, done.stderr
        return done.stderr if done.returncode else ""

    return compile_source


SAME_STREAM = f"static_assert(std::is_same_v<decltype(&{STREAM}), GetCurrentCudaStream>);"


@pytest.mark.parametrize("standard", STANDARDS)
def test_the_declarations_agree(errors: Compile, standard: str) -> None:
    assert errors(f'#include "runtime/torch_shim.h"\n{SAME_STREAM}', standard) == ""


def test_torch_declares_every_function(errors: Compile) -> None:
    """Otherwise there would be nothing to disagree with."""
    names = declared_names(OUR_HEADER.read_text())
    assert len(names) == OUR_HEADER.read_text().count("aoti_torch_") - 1  # the name of the stream's getter
    uses = "".join(f"auto* const use_{name} = &{name};\n" for name in [*names, STREAM])
    assert errors(uses) == ""


# Ours, another that is not torch's, and what the compiler complains about.
DIFFERENCES = {
    "pointer to a narrower type": (
        "get_dim(AtenTensorHandle tensor, int64_t*",
        "get_dim(AtenTensorHandle tensor, int32_t*",
        "aoti_torch_get_dim",
    ),
    "result": ("int32_t aoti_torch_dtype_bool()", "int64_t aoti_torch_dtype_bool()", "aoti_torch_dtype_bool"),
    "one parameter more": ("aoti_torch_dtype_bool()", "aoti_torch_dtype_bool(int)", "aoti_torch_dtype_bool"),
    "callback": (
        "void (*fn)(StableIValue*, uint64_t, uint64_t)",
        "void (*fn)(StableIValue*, uint64_t)",
        "aoti_torch_library_impl",
    ),
    "signedness": ("uint32_t line, const char* msg", "int32_t line, const char* msg", "aoti_torch_check"),
    "stack slot": ("using StableIValue = uint64_t", "using StableIValue = int64_t", "StableIValue"),
    "error code": ("using AOTITorchError = int32_t", "using AOTITorchError = int64_t", "AOTITorchError"),
    "handle": ("AtenTensorHandle = AtenTensorOpaque*", "AtenTensorHandle = void*", "AtenTensorHandle"),
    "function found by name": (
        "(int32_t device_index, void** ret_stream)",
        "(int64_t device_index, void** ret_stream)",
        "static assertion failed",
    ),
}


@pytest.mark.parametrize(("ours", "changed", "complaint"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_different_declaration_does_not_compile(
    errors: Compile, ours: str, changed: str, complaint: str
) -> None:
    header = OUR_HEADER.read_text()
    assert header.count(ours) == 1
    assert complaint in errors(f"{header.replace(ours, changed)}\n{SAME_STREAM}")


def test_a_function_that_torch_lacks_does_not_compile(errors: Compile) -> None:
    assert "aoti_torch_never_was" in errors("auto* const use = &aoti_torch_never_was;")
