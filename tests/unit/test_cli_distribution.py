"""The factory's own wheel: what is in it, and that two folders give the same bytes.

Builds with the installed hatchling, without an isolated environment and so without a network.
"""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from sgl_kernel_rebuild import __version__
from sgl_kernel_rebuild.index import publish, validate

SOURCE = Path(__file__).parents[2] / "python" / "sgl_kernel_rebuild"


def _build(folder: Path, mask: int = 0o022) -> Path:
    """Build from a copy of the sources that lies in ``folder``, as in a clone (LICENSE is a link out)."""
    copy = folder / "python" / "sgl_kernel_rebuild"
    shutil.copytree(SOURCE, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SOURCE.parents[1] / "LICENSE", folder)
    for path in copy.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
            os.utime(path, (mask, mask))
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", code, os.fspath(folder)]
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=True)
    return folder / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return _build(tmp_path_factory.mktemp("clone"))


def test_name_and_contents(wheel):
    assert wheel.name == f"sgl_kernel_rebuild-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    package = {name for name in names if name.startswith("sgl_kernel_rebuild/")}
    extra = {f"sgl_kernel_rebuild/{name}" for name in ("pyproject.toml", "README.md", "LICENSE")}
    assert package == tracked - extra
    dist_info = f"sgl_kernel_rebuild-{__version__}.dist-info"
    assert names - package == {
        f"{dist_info}/{name}"
        for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        dist_info = f"sgl_kernel_rebuild-{__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{dist_info}/METADATA"))
        entry_points = archive.read(f"{dist_info}/entry_points.txt").decode()
    assert metadata["Name"] == "sgl-kernel-rebuild"
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    required = metadata.get_all("Requires-Dist")
    always = [line for line in required if "extra ==" not in line]
    # nvidia-ml-py is Python that asks the driver; the compiler and its libraries come with an extra.
    heavy = [line for line in always if line.startswith(("torch", "nvidia", "cuda"))]
    assert heavy == ["nvidia-ml-py>=12.535"]
    assert any(line.startswith("nvidia-cuda-nvrtc-cu12==12.8.93;") for line in required)
    assert "sgl-kernel-rebuild = sgl_kernel_rebuild.cli:main" in entry_points


def test_two_folders_give_the_same_bytes(wheel, tmp_path):
    assert _build(tmp_path / "another" / "place", mask=0o077).read_bytes() == wheel.read_bytes()


def test_the_index_takes_it(wheel, tmp_path):
    publish([wheel], tmp_path / "wheelhouse")
    assert validate(tmp_path / "wheelhouse") == []
