"""How pip installs the wheel from the wheelhouse, with the published 0.3.7 visible on the package index."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path

import pytest

WHEELHOUSE = Path(__file__).parents[2] / "wheelhouse"


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

    def files(self) -> set[str]:
        """Paths below site-packages, without what pip and Python made themselves."""
        site = next((self.python.parent.parent / "lib").glob("python*/site-packages"))
        names = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
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


def test_an_upgrade_leaves_nothing_of_the_published_wheel(fresh: Environment, tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install("sgl-kernel==0.3.7", "--only-binary=:all:")
    assert environment.version() == "0.3.7"
    assert any(name.startswith("deep_gemm/") for name in environment.files())
    environment.install("--upgrade", "--find-links", str(WHEELHOUSE), "sgl-kernel==0.3.7")
    left = {name for name in environment.files() if "__pycache__" not in name}
    assert left == {name for name in fresh.files() if "__pycache__" not in name}


def test_without_torch_the_import_says_so(fresh: Environment) -> None:
    result = subprocess.run(
        [fresh.python, "-c", "import sgl_kernel"], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "torch" in result.stderr.splitlines()[-1]
