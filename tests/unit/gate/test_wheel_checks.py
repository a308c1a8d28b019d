"""One wheel that keeps every promise, and one per promise that breaks it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from sgl_kernel_rebuild.abi._elffile import SharedObject, Symbol
from sgl_kernel_rebuild.wheel.archive import open_wheel
from sgl_kernel_rebuild.wheel.coverage import DeviceCode, check_coverage, read_device_code
from sgl_kernel_rebuild.wheel.policy import check_contents, check_policy, check_size
from sgl_kernel_rebuild.wheel.tags import check_tags, glibc_of

TAG = "py3-none-manylinux_2_28_x86_64"
RECORD, OPS = "INFO/sgl_kernel/build_record.json", "INFO/sgl_kernel/ops.json"


def texts(violations):
    return [str(violation) for violation in violations]


def floors(*versions, **fields):
    return SharedObject("lib.so", versions={"libc.so.6": versions}, **fields)


def tags_of(path, *objects, **options):
    with open_wheel(path) as wheel:
        return check_tags(wheel, objects, **options)


def test_true_tags_pass(make_wheel):
    report, violations = tags_of(make_wheel(tag=TAG), floors("GLIBC_2.14", "GLIBC_2.28"))
    assert violations == []
    assert report.to_json() == {"tags": [TAG], "glibc_floor": "2.28", "gcc_floor": ""}


@pytest.mark.parametrize(
    ("platform", "glibc"),
    [
        ("manylinux_2_28_x86_64", "2.28"),
        ("manylinux2014_x86_64", "2.17"),
        ("manylinux1_x86_64", "2.5"),
        ("linux_x86_64", None),
        ("manylinux_2_28_aarch64", None),
    ],
)
def test_glibc_of_a_platform(platform, glibc):
    assert glibc_of(platform) == glibc


def test_a_promise_of_an_older_glibc_is_broken(make_wheel):
    tag = "py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64"
    _, violations = tags_of(make_wheel(tag=tag), floors("GLIBC_2.18"))
    assert texts(violations) == [
        "tags: manylinux2014_x86_64: promises glibc 2.17, but a shared object needs GLIBC_2.18",
        "tags: manylinux_2_17_x86_64: promises glibc 2.17, but a shared object needs GLIBC_2.18",
    ]


def test_a_promise_of_too_new_a_glibc_is_refused(make_wheel):
    _, violations = tags_of(make_wheel(tag="py3-none-manylinux_2_34_x86_64"), floors("GLIBC_2.34"))
    assert texts(violations) == [
        "tags: manylinux_2_34_x86_64: expected a glibc of at most 2.28, got 2.34 (needed: 2.34)"
    ]


def test_a_raw_platform_is_refused(make_wheel):
    _, violations = tags_of(make_wheel(), floors())
    assert texts(violations) == ["tags: linux_x86_64: expected a manylinux platform for x86_64"]


def test_file_name_metadata_and_wheel_file_must_agree(make_wheel):
    wheel = b"Wheel-Version: 2.0\nRoot-Is-Purelib: true\nTag: cp311-cp311-manylinux_2_28_x86_64\n"
    metadata = b"Metadata-Version: 2.1\nName: sgl-kernels\nVersion: 0.3.8\n"
    path = make_wheel({"INFO/WHEEL": wheel, "INFO/METADATA": metadata}, tag=TAG)
    _, violations = tags_of(path, floors())
    assert texts(violations) == [
        "tags: METADATA: Name: expected sgl-kernel (file name), got sgl-kernels",
        "tags: METADATA: Version: expected 0.3.7+cu128.1 (file name), got 0.3.8",
        "tags: WHEEL: Root-Is-Purelib: expected False, got true",
        f"tags: WHEEL: Tag: expected {TAG} (file name), got cp311-cp311-manylinux_2_28_x86_64",
        "tags: WHEEL: Wheel-Version: expected 1.0, got 2.0",
    ]


def test_the_dist_info_folder_must_bear_the_file_name(make_wheel):
    path = make_wheel(tag=TAG, name="sgl_kernel-0.3.7+cu128.2")
    _, violations = tags_of(path, floors())
    assert texts(violations)[-1] == (
        "tags: sgl_kernel-0.3.7+cu128.1.dist-info: expected sgl_kernel-0.3.7+cu128.2.dist-info (file name)"
    )


def test_a_version_of_python_in_the_tag_is_refused(make_wheel):
    _, violations = tags_of(make_wheel(tag="cp310-abi3-manylinux_2_28_x86_64"), floors())
    assert texts(violations) == [
        "tags: cp310-abi3: expected py3-none: nothing here depends on a version of Python"
    ]


def test_use_of_pythons_c_api_is_no_py3_none(make_wheel):
    item = floors(undefined=(Symbol("PyModule_Create2"),), needed=("libpython3.11.so.1.0",))
    _, violations = tags_of(make_wheel(tag=TAG), item)
    assert texts(violations) == ["tags: lib.so: uses Python's C API, against py3-none: PyModule_Create2"]


def test_our_library_passes_the_policy(make_wheel):
    with open_wheel(make_wheel()) as wheel:
        objects = [item for item, _ in wheel.shared_objects()]
        assert check_policy(objects) == []
        assert check_contents(wheel) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"needed": ("libcudart.so.12",)}, "needs libcudart.so.12: expected one of"),
        ({"needed": ("libstdc++.so.6",)}, "needs libstdc++.so.6: expected one of"),
        ({"needed": ("libpython3.11.so.1.0",)}, "needs libpython3.11.so.1.0: expected one of"),
        ({"needed": ("libtorch_cuda.so",)}, "needs libtorch_cuda.so: expected one of"),
        (
            {"undefined": (Symbol("_ZN3c104cuda9SetDeviceEa"),)},
            "uses c10::cuda::SetDevice(signed char): expected C functions aoti_torch_* alone of torch",
        ),
        (
            {"undefined": (Symbol("aoti_torch_get_current_cuda_stream"),)},
            "uses aoti_torch_get_current_cuda_stream of libtorch_cuda.so, which a CPU-only torch does not",
        ),
        (
            {"undefined": (Symbol("cuLaunchKernel"),)},
            "uses cuLaunchKernel, which no library it may need exports",
        ),
        ({"undefined": (Symbol("somebody"),)}, "uses somebody, which no library it may need exports"),
        ({"defined": (Symbol("_ZN4demo3runEv"),)}, "exports demo::run(): expected sglk_* alone"),
    ],
)
def test_policy_refuses(fields, message):
    (violation,) = check_policy([SharedObject("lib.so", **fields)])
    assert str(violation).startswith(f"policy: lib.so: {message}")


def test_policy_lets_our_prefix_and_linker_marks_out():
    defined = (Symbol("sglk_version"), Symbol("_edata"))
    assert check_policy([SharedObject("lib.so", defined=defined)]) == []


def test_contents_must_be_our_package_and_torch_alone(make_wheel):
    metadata = (
        b"Metadata-Version: 2.1\nName: sgl-kernel\nVersion: 0.3.7+cu128.1\n"
        b"Requires-Dist: torch>=2.8.0\nRequires-Dist: numpy\n"
    )
    changes = {"INFO/METADATA": metadata, "deep_gemm/__init__.py": b"", "sgl_kernel/libsgl_kernel.so": None}
    with open_wheel(make_wheel(changes)) as wheel:
        assert texts(check_contents(wheel)) == [
            "policy: deep_gemm/__init__.py: expected files in sgl_kernel/ alone",
            f"policy: {wheel.path.name}: expected a shared object, got none",
            "policy: METADATA: Requires-Dist: expected torch>=2.7.0, got numpy, torch>=2.8.0",
            "policy: METADATA: Requires-Python: expected >=3.10, got None",
        ]


def test_size_is_bounded():
    assert check_size("w.whl", 10_000_000, 10) == []
    assert texts(check_size("w.whl", 10_000_001, 10)) == [
        "policy: w.whl: expected at most 10 MB, got 10.00 MB"
    ]


def coverage_of(path, change=lambda code: code):
    """Return manifest and violations of a wheel, after ``change`` to the list of its device code."""
    with open_wheel(path) as wheel:
        code, registered = [], set()
        for item, stream in wheel.shared_objects():
            found, names = read_device_code(item, stream, item.name)
            code += found
            registered |= names
        report, violations = check_coverage(wheel, change(code), registered)
        return report, texts(violations)


def edit(members, name, **fields):
    document = json.loads(members[name.replace("INFO", "sgl_kernel-0.3.7+cu128.1.dist-info")])
    return {name: json.dumps({**document, **fields}).encode()}


def test_coverage_of_a_whole_wheel(make_wheel):
    report, violations = coverage_of(make_wheel())
    assert violations == []
    manifest = report.to_json()
    assert manifest["targets"] == ["sm_80", "sm_86", "sm_90a", "sm_120", "compute_120"]
    assert manifest["ops"]["scale"] == {
        "family": "demo",
        "kernels": {target: ["scale_f16", "scale_f32"] for target in manifest["targets"]},
    }
    kernel = manifest["kernels"]["scale_f32"]
    assert kernel["source"] == "csrc/kernels/demo.cu"
    assert kernel["targets"]["sm_80"]["shared"] == 256
    assert kernel["targets"]["sm_80"]["registers"] > 0
    assert kernel["targets"]["compute_120"] is None
    assert "add_f32 on sm_86" in report.spilling
    assert not any("scale" in name for name in report.spilling)
    assert json.loads(json.dumps(manifest)) == manifest


def test_a_hole_in_the_coverage_is_told(make_wheel, members):
    ops = {"scale": {"family": "demo", "kernels": ["scale_f16", "scale_f32", "scale_bf16*"]}}
    _, violations = coverage_of(make_wheel(edit(members, OPS, **ops)))
    assert violations == [
        f"coverage: scale: scale_bf16*: expected a kernel for {target}, got none"
        for target in ("compute_120", "sm_120", "sm_80", "sm_86", "sm_90a")
    ]


def test_code_for_one_architecture_less_is_told(make_wheel):
    _, violations = coverage_of(make_wheel(), lambda code: [item for item in code if item.target != "sm_86"])
    assert violations == [
        "coverage: add: add_*: expected a kernel for sm_86, got none",
        "coverage: csrc/kernels/demo.cu: sm_86: in the build record, but not in a shared object",
        "coverage: scale: scale_f16: expected a kernel for sm_86, got none",
        "coverage: scale: scale_f32: expected a kernel for sm_86, got none",
    ]


@pytest.mark.parametrize("pattern", ["sm90_scale_*", "scale_sm90_*"])
def test_a_kernel_of_one_architecture_is_asked_of_that_one_alone(make_wheel, members, pattern):
    ops = {"scale": {"family": "demo", "kernels": ["scale_*", pattern]}}
    _, violations = coverage_of(make_wheel(edit(members, OPS, **ops)))
    assert violations == [f"coverage: scale: {pattern}: expected a kernel for sm_90a, got none"]


def test_a_kernel_that_no_operator_uses_is_told(make_wheel, members):
    ops = {"add": {"family": "demo", "kernels": ["nothing_*"]}}
    _, violations = coverage_of(make_wheel(edit(members, OPS, **ops)))
    assert (
        "coverage: add_f32: kernel of csrc/kernels/demo.cu: no operator in sgl_kernel/ops.json uses it"
        in violations
    )


def test_operators_without_code_or_registration_are_told(make_wheel, members):
    ops = {"ghost": {"family": "spectral", "kernels": []}}
    _, violations = coverage_of(make_wheel(edit(members, OPS, **ops)))
    assert violations == [
        "coverage: ghost: family spectral: expected code, got none",
        "coverage: ghost: in sgl_kernel/ops.json, but no shared object registers it",
    ]


def test_registered_operators_must_be_listed(make_wheel):
    _, violations = coverage_of(make_wheel({OPS: b'{"add": {"family": "demo", "kernels": ["*"]}}'}))
    assert violations == ["coverage: scale: registered, but not in sgl_kernel/ops.json"]


def test_ptx_that_the_record_lacks_is_told(make_wheel, members):
    record = json.loads(members[RECORD.replace("INFO", "sgl_kernel-0.3.7+cu128.1.dist-info")])
    for source in record["sources"].values():
        del source["code"]["compute_120"]
    _, violations = coverage_of(make_wheel(edit(members, RECORD, sources=record["sources"])))
    assert violations == [
        "coverage: csrc/kernels/demo.cu: compute_120: expected in the build record, got none"
    ]


def test_copies_that_no_gpu_runs_are_told(make_wheel):
    def spoil(code):
        item = next(item for item in code if item.target == "sm_86")
        kernel = dataclasses.replace(item.kernels["add_f32"], uniform_copies=8)
        spoilt = dataclasses.replace(item, kernels={**item.kernels, "add_f32": kernel})
        return [spoilt if other is item else other for other in code]

    _, violations = coverage_of(make_wheel(), spoil)
    assert violations == [
        "coverage: add_f32: sm_86: 8 copies to uniform addresses: expected none (a fault of ptxas)"
    ]


def test_code_that_is_on_no_record_is_told(make_wheel):
    strange = DeviceCode("x: 9", "sm_80", frozenset({"0" * 64}), {"smuggled": None})
    _, violations = coverage_of(make_wheel(), lambda code: [*code, strange])
    assert violations == ["coverage: sm_80: code (smuggled): not in the build record"]


def test_code_of_another_kind_is_on_no_record(make_wheel):
    # Intermediate code, say, in the container of code that is on record.
    strange = DeviceCode("sgl_kernel/libsgl_kernel.so: 0", "kind8_90", frozenset({"0" * 64}), {})
    _, violations = coverage_of(make_wheel(), lambda code: [*code, strange])
    assert violations == ["coverage: kind8_90: code (no kernel): not in the build record"]


def test_ptx_without_machine_code_beside_it_is_on_no_record(make_wheel):
    _, violations = coverage_of(make_wheel(), lambda code: [item for item in code if item.is_ptx])
    assert (
        "coverage: compute_120: code (add_f32, scale_f16, scale_f32): not in the build record" in violations
    )


def test_a_record_of_another_version_or_form_is_told(make_wheel, members):
    _, violations = coverage_of(make_wheel(edit(members, RECORD, version="0.3.7", schema=9)))
    assert violations == [
        "coverage: sgl_kernel/build_record.json: schema: expected 1, got 9",
        "coverage: sgl_kernel/build_record.json: version: expected 0.3.7+cu128.1, got 0.3.7",
    ]


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {RECORD: None, OPS: None},
            [
                "coverage: sgl_kernel/build_record.json: expected in the dist-info folder, got none",
                "coverage: sgl_kernel/ops.json: expected in the dist-info folder, got none",
            ],
        ),
        ({OPS: b"{"}, ["coverage: sgl_kernel/ops.json: expected JSON, got"]),
        ({OPS: b"[]"}, ["coverage: sgl_kernel/ops.json: expected a JSON object"]),
        (
            {OPS: b'{"scale": 1}'},
            ["coverage: sgl_kernel/build_record.json, sgl_kernel/ops.json: of an unknown form"],
        ),
        (
            {RECORD: b"{}"},
            ["coverage: sgl_kernel/build_record.json, sgl_kernel/ops.json: of an unknown form"],
        ),
    ],
)
def test_documents_that_are_absent_or_none_are_told(make_wheel, changes, messages):
    _, violations = coverage_of(make_wheel(changes))
    assert len(violations) == len(messages)
    for violation, message in zip(violations, messages, strict=True):
        assert violation.startswith(message)
