from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ._build import CSRC, FAMILIES, ROOT, CompilerError, build


@pytest.fixture(scope="session")
def native_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("native"))
    except CompilerError as err:
        pytest.fail(str(err), pytrace=False)


def _load(library: Path) -> Any:
    # pybind11 keeps one module of each full name: the folder makes it another.
    spec = importlib.util.spec_from_file_location(f"{library.parent.name}.native", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def native(native_library: Path) -> Any:
    """The module, without a CUDA driver."""
    return _load(native_library)


@pytest.fixture(autouse=True)
def no_problems(native: Any) -> Iterator[None]:
    """When a test ends, every handle and slot is released, no misuse noted, no context left behind."""
    native.torch.misbehave()
    native.torch.seen()
    native.driver.reset()
    native.driver.launches()
    native.driver.set_current_context(0)
    yield
    assert native.torch.problems() == []
    assert native.driver.context_depth() == 1
    assert native.driver.is_capture_mode_restored()


@pytest.fixture
def gpu(native: Any) -> Any:
    """The same with a CUDA driver, torch's CUDA library and two devices; device 0 is current."""
    native.driver.set("has_driver", True)
    return native


@pytest.fixture
def fresh(native_library: Path, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Loads a copy of the module: the runtime in it has seen no driver, no kernel and no dtype yet."""
    count = itertools.count()
    loaded = []

    def load() -> Any:
        copy = tmp_path / f"{tmp_path.name}_{next(count)}" / native_library.name
        copy.parent.mkdir()
        shutil.copyfile(native_library, copy)
        loaded.append(_load(copy))
        return loaded[-1]

    yield load
    for module in loaded:
        assert module.torch.problems() == []


@dataclass(frozen=True)
class EntryPoint:
    """A kernel as the device compiler sees it."""

    max_threads: int  # its launch bound
    params_bytes: int  # of its only parameter


# PTX ISA, "Kernel and Function Directives: .entry" and "Performance-Tuning Directives: .maxntid".
ENTRY = re.compile(
    r"^\.visible \.entry (\w+)\(\n\s*\.param \.align \d+ \.b8 \w+\[(\d+)\]\n\)\n\.maxntid (\d+), 1, 1$",
    re.MULTILINE,
)


@pytest.fixture(scope="session")
def entry_points(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, EntryPoint]]:
    """Family → name → entry point, from the PTX that the toolchain makes of csrc/kernels."""
    folder = tmp_path_factory.mktemp("device")
    found = {}
    for family in FAMILIES:
        ptx = folder / f"{family}.ptx"
        command = [sys.executable, "-m", "sgl_kernel_rebuild.toolchain", "compile", "--compiler", "nvrtc"]
        command += [
            "--arch",
            "90a",  # whose code has the kernels of all architectures and those of its own
            "--kind",
            "ptx",
            "--source-root",
            str(ROOT),
            "--include",
            str(CSRC / "kernels"),
        ]
        command += ["--output", str(ptx), "--depfile", f"{ptx}.d", "--report", f"{ptx}.json"]
        command += [str(CSRC / "kernels" / f"{family}.cu")]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "python"),
            "SGLK_CACHE_DIR": str(folder / "cache"),
        }
        subprocess.run(command, env=environment, check=True)
        text = ptx.read_text()
        entries = {name: EntryPoint(int(threads), int(size)) for name, size, threads in ENTRY.findall(text)}
        assert len(entries) == text.count(".entry ")
        found[family] = entries
    return found
