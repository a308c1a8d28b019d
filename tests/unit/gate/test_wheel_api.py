"""The Python API of a wheel against the published one."""

from __future__ import annotations

import pytest
from sgl_kernel_rebuild.errors import BinaryError
from sgl_kernel_rebuild.wheel.api import check_api, load_snapshot, read_api
from sgl_kernel_rebuild.wheel.archive import open_wheel

SMALL = {
    "schema": 1,
    "version": "1.0",
    "modules": {
        "sgl_kernel": {"scale": {"alias": "sgl_kernel.ops.scale"}},
        "sgl_kernel.ops": {
            "scale": {
                "kind": "function",
                "parameters": [
                    {"name": "x", "kind": "positional or keyword"},
                    {"name": "eps", "kind": "positional or keyword", "default": "1e-06"},
                ],
            },
            "Shape": {
                "kind": "class",
                "parameters": [{"name": "rows", "kind": "positional or keyword"}],
                "members": {
                    "area": {
                        "kind": "function",
                        "parameters": [{"name": "self", "kind": "positional or keyword"}],
                    },
                    "unit": {"kind": "attribute"},
                },
            },
        },
    },
}
GOOD = """
from dataclasses import dataclass
def scale(x, eps=1e-6): ...
@dataclass
class Shape:
    rows: int
    unit = 1
    def area(self): ...
"""


@pytest.fixture
def check(make_wheel):
    """Compare a package of one module with the small snapshot; return report and violations."""

    def check_(ops=GOOD, init="from sgl_kernel.ops import scale\n", **files):
        drop = dict.fromkeys(files)
        with open_wheel(
            make_wheel(
                {
                    **_without_package(make_wheel),
                    **drop,
                    "sgl_kernel/__init__.py": init.encode(),
                    "sgl_kernel/ops.py": ops.encode(),
                    **{name: text.encode() for name, text in files.items()},
                }
            )
        ) as wheel:
            report, violations = check_api(wheel, SMALL)
            return report, [str(violation) for violation in violations]

    return check_


def _without_package(make_wheel):
    with open_wheel(make_wheel()) as wheel:
        return {name: None for name in wheel.members if name.endswith(".py")}


def test_the_same_api_passes(check):
    report, violations = check()
    assert violations == []
    assert report.provided == ("sgl_kernel.ops.Shape", "sgl_kernel.ops.scale")
    assert report.to_json()["counts"] == {"provided": 2, "not_provided": 0, "absent": 0}


def test_a_definition_may_live_in_a_private_module(check):
    files = {"sgl_kernel/_impl.py": GOOD}
    assert check("from sgl_kernel._impl import Shape, scale\n", **files)[1] == []


def test_not_provided_is_counted_apart(check):
    code = GOOD.replace("def scale", "@not_provided\ndef scale")
    report, violations = check("from sgl_kernel._missing import not_provided\n" + code)
    assert violations == []
    assert report.not_provided == ("sgl_kernel.ops.scale",)


def test_optional_parameters_beyond_the_published_are_reported(check):
    report, violations = check(GOOD.replace("eps=1e-6)", "eps=1e-6, *, fast=True)"))
    assert violations == []
    assert report.additions == ("sgl_kernel.ops.scale(fast)", "sgl_kernel.scale(fast)")


SCALE = ("def scale(x, eps=1e-6)", "sgl_kernel.ops.scale", "sgl_kernel.scale")


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("def scale(y, eps=1e-6)", "parameter 1: expected x, got y"),
        ("def scale(x)", "parameter 2: expected eps, got none"),
        ("def scale(x, eps=1e-5)", "parameter eps: expected default 1e-06, got 1e-05"),
        ("def scale(x, eps)", "parameter eps: expected default 1e-06, got none"),
        ("def scale(x, *, eps=1e-6)", "parameter eps: expected positional or keyword, got keyword-only"),
        ("def scale(x, eps=1e-6, *, must)", "parameter must: beyond the published ones, expected a default"),
        ("class scale", "expected a function, got a class"),
        ("def other()", "expected the published name, got none"),
    ],
)
def test_what_breaks_a_caller_is_told_at_every_path(check, new, message):
    old, *paths = SCALE
    init = "from sgl_kernel.ops import *\n"
    _, violations = check(GOOD.replace(old, new), init)
    assert violations == [f"api: {path}: {message}" for path in paths]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "def area(self)",
            "def area(self, scale)",
            "area: parameter scale: beyond the published ones, expected a default",
        ),
        ("def area(self)", "def volume(self)", "area: expected the published member, got none"),
        ("unit = 1", "", "unit: expected the published member, got none"),
        ("rows: int", "lines: int", "parameter 1: expected rows, got lines"),
        ("class Shape:", "def Shape(): ...\nclass Form:", "expected a class, got a function"),
    ],
)
def test_what_breaks_a_class_is_told(check, old, new, message):
    assert check(GOOD.replace(old, new).replace("@dataclass\ndef", "def"))[1] == [
        f"api: sgl_kernel.ops.Shape: {message}"
    ]


def test_a_name_that_is_not_handed_on_is_told(check):
    assert check(init="")[1] == ["api: sgl_kernel.scale: expected the published name, got none"]


def test_two_names_of_one_function_are_one(check):
    code = GOOD.replace("def scale", "def scale_all") + "scale = scale_all\n"
    assert check(code)[1] == []


def test_branches_for_rocm_are_no_part(check):
    code = (
        f"import torch\nif torch.version.hip is not None:\n    def scale(other): ...\nelse:\n    pass\n{GOOD}"
    )
    assert check(code)[1] == []


def test_source_that_does_not_parse_is_named(check):
    with pytest.raises(BinaryError, match=r"\.whl: sgl_kernel/ops\.py: "):
        check("def broken(:\n")


def test_a_wheel_without_the_package_is_refused(make_wheel):
    with (
        open_wheel(make_wheel(_without_package(make_wheel))) as wheel,
        pytest.raises(BinaryError, match=r"expected sgl_kernel/__init__\.py"),
    ):
        read_api(wheel)


def test_the_snapshot_holds_what_sglang_calls():
    modules = load_snapshot()["modules"]
    top = modules["sgl_kernel"]
    assert {
        "rmsnorm",
        "silu_and_mul",
        "gptq_marlin_gemm",
        "FusedSetKVBufferArg",
        "top_k_renorm_prob",
    } <= top.keys()
    assert "gelu_quick" not in top, "ROCm alone has it"
    rmsnorm = modules["sgl_kernel.elementwise"]["rmsnorm"]["parameters"]
    assert [parameter["name"] for parameter in rmsnorm] == ["input", "weight", "eps", "out", "enable_pdl"]
    assert rmsnorm[2]["default"] == "1e-06"
    assert {"transfer_kv_direct", "transfer_kv_per_layer_pf_lf"} <= modules["sgl_kernel.kvcacheio"].keys()
    definitions = [entry for names in modules.values() for entry in names.values() if "alias" not in entry]
    assert len(definitions) == 110


def test_a_package_made_of_the_snapshot_passes(make_wheel):
    with open_wheel(make_wheel()) as wheel:
        report, violations = check_api(wheel)
    assert violations == []
    assert report.absent == ()
    assert len(report.provided) + len(report.not_provided) == 110
    assert report.not_provided
