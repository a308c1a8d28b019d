"""What the image installs is pinned with hashes, names no index, and holds what the factory needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sgl_kernel_rebuild.deploy.profile import tomllib

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "deploy" / "requirements"
LOCKED = sorted(FOLDER.glob("*.txt"))


def pins(path):
    """Return name and version of every requirement in a locked file, with the number of its hashes."""
    found = {}
    for entry in path.read_text().replace("\\\n", " ").splitlines():
        if entry.startswith("#"):
            continue
        requirement = re.match(r"(\S+)==(\S+)(?: ; .+?)? ((?: *--hash=sha256:[0-9a-f]{64})+)$", entry)
        assert requirement, entry
        found[canonicalize_name(requirement[1])] = requirement[2]
    return found


@pytest.mark.parametrize("path", LOCKED, ids=lambda path: path.stem)
def test_every_requirement_is_pinned_with_a_hash(path):
    assert pins(path)
    assert "://" not in path.read_text()


def test_the_image_holds_what_the_factory_needs():
    project = tomllib.loads((REPOSITORY / "python/sgl_kernel_rebuild/pyproject.toml").read_text())["project"]
    needed = [Requirement(text) for text in project["dependencies"]]
    needed = [
        item for item in needed if item.marker is None or item.marker.evaluate({"python_version": "3.11"})
    ]
    locked = pins(FOLDER / "sglang.txt")
    lacking = [item.name for item in needed if not item.specifier.contains(locked.get(item.name, "0"))]
    assert not lacking, "nox -s lock writes them"


@pytest.mark.parametrize("cuda", ["cu126", "cu128"])
def test_torch_is_the_one_that_the_wheel_is_for(cuda):
    locked = pins(FOLDER / f"torch-{cuda}.txt")
    local = "" if cuda == "cu126" else "+cu128"
    assert locked["torch"] == f"2.7.0{local}"
    assert locked["torchvision"] == f"0.22.0{local}"
    assert locked["triton"] == "3.3.0"
    assert not set(locked) & set(pins(FOLDER / "sglang.txt"))


def test_the_manylinux_image_builds_with_the_pinned_compiler():
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = pins(FOLDER / "wheel.txt")
    for requirement in map(Requirement, needed):
        assert requirement.specifier.contains(locked[requirement.name])
