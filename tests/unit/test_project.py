"""What CONTRIBUTING promises about the tree: one stem a family, in every place where a family is named."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from sgl_kernel_rebuild.abi import Atlas

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest's own dependency there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CMAKE = (ROOT / "CMakeLists.txt").read_text()
FAMILIES = re.findall(r"\w+", re.search(r"set\(SGLK_FAMILIES ([^)]*)\)", CMAKE)[1])  # type: ignore[index]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_files(family: str) -> None:
    for name in (
        f"csrc/kernels/{family}.cu",
        f"csrc/kernels/{family}.h",
        f"csrc/ops/{family}.cpp",
        f"csrc/ops/heuristics/{family}.h",
        f"tests/gpu/test_{family}.py",
        f"tests/native/test_{family}.py",
        f"tests/wheel/test_cpu_{family}.py",
    ):
        assert (ROOT / name).is_file(), name
    assert f"  csrc/ops/{family}.cpp\n" in CMAKE


def test_every_family_is_named_and_no_other() -> None:
    assert sorted(FAMILIES) == FAMILIES
    assert {path.stem for path in (ROOT / "csrc/kernels").glob("*.cu")} == set(FAMILIES)
    ops = json.loads((ROOT / "csrc/ops/ops.json").read_text())
    assert {op["family"] for op in ops.values()} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sanitizer_sees_every_family(family: str) -> None:
    """tests/gpu/run_sanitizer.sh runs what carries its mark."""
    assert "pytest.mark.sanitizer" in (ROOT / f"tests/gpu/test_{family}.py").read_text()


def test_the_newest_torch_of_the_atlas_is_the_one_whose_headers_are_compiled() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert groups["newest-torch"] == [f"torch=={Atlas.load().releases[-1]}"]
