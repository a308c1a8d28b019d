"""The host's list of kernels, the entry points of the device code and csrc/ops/ops.json say the same."""

from __future__ import annotations

import itertools
import json
from fnmatch import fnmatchcase
from typing import Any

import pytest

from . import (
    test_activation,
    test_awq,
    test_gptq,
    test_grammar,
    test_kv_store,
    test_marlin_gemm,
    test_marlin_repack,
    test_merge,
    test_moe_align,
    test_moe_gate,
    test_norm,
    test_rope,
    test_sampling,
)
from ._build import CSRC, FAMILIES, ROOT

FAMILY_TESTS = {
    "norm": test_norm,
    "activation": test_activation,
    "rope": test_rope,
    "marlin_repack": test_marlin_repack,
    "awq": test_awq,
    "gptq": test_gptq,
    "marlin_gemm": test_marlin_gemm,
    "merge": test_merge,
    "grammar": test_grammar,
    "kv_store": test_kv_store,
    "moe_gate": test_moe_gate,
    "moe_align": test_moe_align,
    "sampling": test_sampling,
}
# The families whose kernels are all combinations of an op, style or step, an element type and a shape.
COMBINATIONS = {
    "norm": (2, 2),
    "activation": (3, 3),
    "rope": (2, 2),
    "marlin_gemm": (1, 2),
    "merge": (2, 3),
    "grammar": (1, 3),
    "kv_store": (3, 1),
    "moe_gate": (2, 3),
    "moe_align": (1, 2),
    "sampling": (5, 1),
}


def combinations(native: Any, family: str) -> list[tuple[int, int, int]]:
    """(first, second, shape) of each kernel, in the order of the kernels."""
    first, second = COMBINATIONS[family]
    shapes = range(len(getattr(native, family).shapes))
    everything = itertools.product(range(first), range(second), shapes)
    # moe_fused_gate has all shapes but the last.
    return [x for x in everything if family != "moe_gate" or x[0] == 0 or x[2] != shapes[-1]]


def names(native: Any, family: str) -> list[str]:
    module = getattr(native, family)
    return [module.kernel_name(index) for index in range(module.kernel_count)]


def max_threads(native: Any, family: str, index: int) -> int:
    module = getattr(native, family)
    bounds = {
        "norm": lambda: module.shapes[index % len(module.shapes)][-1],
        "sampling": lambda: module.threads,
        "marlin_gemm": lambda: (
            module.sm90_shapes[(index - 2 * len(module.shapes)) % len(module.sm90_shapes)][-1]
            if "_sm90_" in module.kernel_name(index)
            else module.shapes[index % len(module.shapes)][-1]
        ),
    }
    bound: int = bounds.get(family, lambda: getattr(module, "max_threads", 128))()
    return bound


def test_a_family_has_one_file_of_each_kind() -> None:
    assert sorted(path.stem for path in (CSRC / "kernels").glob("*.cu")) == FAMILIES
    assert {path.stem for path in (CSRC / "kernels").glob("*.h")} >= set(FAMILIES)
    assert {path.stem for path in (CSRC / "ops" / "heuristics").glob("*.h")} >= set(FAMILIES)
    cmake = (ROOT / "CMakeLists.txt").read_text()
    (line,) = [line for line in cmake.splitlines() if line.startswith("set(SGLK_FAMILIES ")]
    assert sorted(line.removesuffix(")").split()[1:]) == FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_host_selects_exactly_the_entry_points(native: Any, entry_points: Any, family: str) -> None:
    assert sorted(names(native, family)) == sorted(entry_points[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_unique(native: Any, family: str) -> None:
    assert len(set(names(native, family))) == getattr(native, family).kernel_count


@pytest.mark.parametrize("family", COMBINATIONS)
def test_indices_and_names_are_one_to_one(native: Any, family: str) -> None:
    module = getattr(native, family)
    kernels = combinations(native, family)
    assert [module.kernel_index(*kernel) for kernel in kernels] == list(range(len(kernels)))
    # Kernels of one architecture come last, see the family's own tests.
    general = [name for name in names(native, family) if "_sm90_" not in name]
    for name, (_, _, shape) in zip(general, kernels, strict=True):
        assert name.endswith(f"_{module.shapes[shape][0]}")


@pytest.mark.parametrize("family", FAMILIES)
def test_host_and_device_agree_on_threads_and_parameters(native: Any, entry_points: Any, family: str) -> None:
    module = getattr(native, family)
    for index, name in enumerate(names(native, family)):
        entry = entry_points[family][name]
        assert entry.max_threads == max_threads(native, family, index), name
        size = module.params_size_of(index) if family == "marlin_gemm" else module.params_size
        assert entry.params_bytes == size, name


def test_norm_shapes_are_named_after_their_template_arguments(native: Any) -> None:
    for name, lanes, width, accesses, _ in native.norm.shapes:
        sort = "block" if width > 1 else "element"
        expected = f"rows_{lanes}x{accesses}" if lanes else f"{sort}_{accesses}" if accesses else "any"
        assert name == expected


def ops_json() -> dict[str, Any]:
    listed: dict[str, Any] = json.loads((CSRC / "ops" / "ops.json").read_text())
    return listed


def test_every_op_is_listed_and_registered(native: Any) -> None:
    registered = {
        op["name"]: op for op in native.torch.registrations() if not op["name"].startswith("probe_")
    }
    assert sorted(registered) == sorted(ops_json())
    assert {(op["name_space"], op["key"]) for op in registered.values()} == {("sgl_kernel", "CUDA")}
    assert sorted(registered) == sorted(op for tests in FAMILY_TESTS.values() for op in tests.OPS)


@pytest.mark.parametrize(("op", "listed"), ops_json().items())
def test_an_op_launches_exactly_what_is_listed(gpu: Any, op: str, listed: dict[str, Any]) -> None:
    for values in FAMILY_TESTS[listed["family"]].every_call(gpu, op):
        gpu.torch.call(op, values)
    launches = gpu.driver.launches()
    assert {launch["family"] for launch in launches} == {listed["family"]}
    covered = {
        pattern: {name for name in names(gpu, listed["family"]) if fnmatchcase(name, pattern)}
        for pattern in listed["kernels"]
    }
    assert all(covered.values())
    assert {launch["kernel"] for launch in launches} == set().union(*covered.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_belongs_to_an_op(native: Any, family: str) -> None:
    patterns = [x for listed in ops_json().values() if listed["family"] == family for x in listed["kernels"]]
    for name in names(native, family):
        assert any(fnmatchcase(name, pattern) for pattern in patterns), name
