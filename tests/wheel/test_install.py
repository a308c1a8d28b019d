"""How pip installs the wheel from the wheelhouse, with the published 0.3.7 visible on the package index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

WHEELHOUSE = Path(os.environ.get("SGLK_WHEELHOUSE") or Path(__file__).parents[2] / "wheelhouse")


class Environment:
    """A fresh virtual environment; nothing that is installed there brings its dependencies."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.python = folder / "bin" / "python"

    def pip(self, *arguments: str) -> str:
        command = [self.python, "-m", "pip", "--disable-pip-version-check", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def install(self, *arguments: str) -> None:
        self.pip("install", "--quiet", "--no-deps", *arguments)

    @property
    def site(self) -> Path:
        return next((self.python.parent.parent / "lib").glob("python*/site-packages"))

    def files(self) -> set[str]:
        """Paths below site-packages, without what pip and Python made themselves."""
        names = {str(path.relative_to(self.site)) for path in self.site.rglob("*") if path.is_file()}
        return {
            name for name in names if not name.startswith(("pip", "setuptools", "_distutils", "distutils-"))
        }

    def version(self) -> str:
        return next(
            p["version"] for p in json.loads(self.pip("list", "--format=json")) if p["name"] == "sgl-kernel"
        )


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("fresh"))
    environment.install("--find-links", str(WHEELHOUSE), "sgl-kernel==0.3.7")
    return environment


def test_ours_wins_over_the_published_wheel(fresh: Environment) -> None:
    assert fresh.version().startswith("0.3.7+cu128.")


def test_nothing_but_the_wheelhouse_is_needed(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install("--no-index", "--find-links", str(WHEELHOUSE), "sgl-kernel")
    assert environment.version().startswith("0.3.7+cu128.")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the published wheel; the last test that uses it upgrades it."""
    environment = Environment(tmp_path_factory.mktemp("published"))
    environment.install("sgl-kernel==0.3.7", "--only-binary=:all:")
    assert environment.version() == "0.3.7"
    return environment


def test_the_published_wheel_fits_torch_2_8_0_alone(published: Environment) -> None:
    """What the auditor says of it, as the README quotes."""
    library = published.site / "sgl_kernel" / "common_ops.abi3.so"
    command = [sys.executable, "-m", "sgl_kernel_rebuild", "audit", "--json", str(library)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (10, "")  # some release from 2.7.0 on lacks a symbol
    (report,) = json.loads(result.stdout)["reports"]
    assert [x["torch"] for x in report["releases"] if x["verdict"] == "fits"] == ["2.8.0"]
    missing = "under 2.7.0 it lacks c10::cuda::SetDevice(signed char, bool), first exported by 2.8.0"
    assert f"{missing} (nearest there: c10::cuda::SetDevice(signed char))" in report["conclusion"]


def test_an_upgrade_leaves_nothing_of_the_published_wheel(fresh: Environment, published: Environment) -> None:
    assert any(name.startswith("deep_gemm/") for name in published.files())
    published.install("--upgrade", "--find-links", str(WHEELHOUSE), "sgl-kernel==0.3.7")
    assert published.version().startswith("0.3.7+cu128.")
    left = {name for name in published.files() if "__pycache__" not in name}
    assert left == {name for name in fresh.files() if "__pycache__" not in name}


def test_without_torch_the_import_says_so(fresh: Environment) -> None:
    result = subprocess.run(
        [fresh.python, "-c", "import sgl_kernel"], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "torch" in result.stderr.splitlines()[-1]
