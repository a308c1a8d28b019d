"""The gate as a whole: what comes out, what is refused, and that nothing is left behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zipfile

import pytest
from sgl_kernel_rebuild.errors import BinaryError, GateError
from sgl_kernel_rebuild.wheel import gate
from sgl_kernel_rebuild.wheel.archive import open_wheel
from sgl_kernel_rebuild.wheel.gate import run_gate
from sgl_kernel_rebuild.wheel.repack import repack, source_date_epoch
from sgl_kernel_rebuild.wheel.repair import repair
from sgl_kernel_rebuild.wheel.sbom import make_sbom

INFO = "sgl_kernel-0.3.7+cu128.1.dist-info"
LIBRARY = "sgl_kernel/libsgl_kernel.so"


@pytest.fixture(autouse=True)
def _no_date(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


def test_a_sound_wheel_comes_out_with_its_proofs(make_wheel, tmp_path):
    raw = make_wheel()
    before = raw.read_bytes()
    report = run_gate(raw, tmp_path / "proven")
    assert raw.read_bytes() == before
    assert list((tmp_path / "proven").iterdir()) == [report.wheel]
    assert report.sha256 == hashlib.sha256(report.wheel.read_bytes()).hexdigest()
    assert report.size == report.wheel.stat().st_size
    assert "manylinux" in report.wheel.name
    assert report.inspection.certificate.fits == (
        "2.7.0",
        "2.7.1",
        "2.8.0",
        "2.9.1",
        "2.10.0",
        "2.11.0",
        "2.12.1",
        "2.13.0",
        "2.14.1",
        "2.15.0",
    )
    with open_wheel(report.wheel) as wheel:
        assert wheel.check_record() == []
        certificate = json.loads(wheel.read_text(f"{INFO}/sgl_kernel/abi_certificate.json"))
        coverage = json.loads(wheel.read_text(f"{INFO}/sgl_kernel/coverage.json"))
        api = json.loads(wheel.read_text(f"{INFO}/sgl_kernel/api.json"))
        sbom = json.loads(wheel.read_text(f"{INFO}/sboms/sgl_kernel.cdx.json"))
        assert f"{INFO}/sgl_kernel/build_record.json" in wheel.members
    assert {entry["torch"]: entry["verdict"] for entry in certificate["releases"]}["2.7.0"] == "fits"
    assert set(coverage["ops"]) == {"scale", "add"}
    assert api["counts"]["absent"] == 0
    assert sbom["bomFormat"] == "CycloneDX"
    assert json.loads(json.dumps(report.to_json()))["sha256"] == report.sha256


def test_members_come_in_order_with_fixed_times_and_permissions(make_wheel, tmp_path):
    report = run_gate(make_wheel(), tmp_path / "proven")
    with zipfile.ZipFile(report.wheel) as archive:
        infos = archive.infolist()
    names = [info.filename for info in infos]
    assert names[-1] == f"{INFO}/RECORD"
    body = [name for name in names if not name.startswith(INFO)]
    assert names[: len(body)] == sorted(body)
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.external_attr >> 16 for info in infos} == {0o100644}
    assert not any(info.is_dir() for info in infos)


def test_two_gates_give_the_same_bytes(make_wheel, tmp_path):
    first = run_gate(make_wheel(folder="here"), tmp_path / "one")
    second = run_gate(make_wheel(folder="there", mtime=(2030, 5, 5, 5, 5, 4)), tmp_path / "two")
    assert first.sha256 == second.sha256
    assert first.content == second.content
    # What went through the gate goes through it again unchanged.
    assert run_gate(first.wheel, tmp_path / "three").sha256 == first.sha256


def test_a_date_can_be_given(make_wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    report = run_gate(make_wheel(), tmp_path / "proven")
    with zipfile.ZipFile(report.wheel) as archive:
        assert {info.date_time for info in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
        assert b"2023-11-14T22:13:20" in archive.read(f"{INFO}/sboms/sgl_kernel.cdx.json")


@pytest.mark.parametrize(("value", "expected"), [("", 315532800), ("1", 315532800), ("9" * 12, 4354819198)])
def test_dates_beyond_a_zip_file_are_drawn_in(monkeypatch, value, expected):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    assert source_date_epoch() == expected


def test_a_date_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(GateError, match="SOURCE_DATE_EPOCH: expected seconds since 1970, got 'yesterday'"):
        source_date_epoch()


def refused(path, dest, **options):
    with pytest.raises(GateError) as caught:
        run_gate(path, dest, **options)
    assert not dest.exists(), "nothing may be written"
    return str(caught.value)


def test_every_violation_is_listed_and_nothing_is_written(make_wheel, tmp_path):
    changes = {
        "INFO/sgl_kernel/ops.json": b'{"add": {"family": "demo", "kernels": ["add_*", "add_bf16"]}}',
        "INFO/METADATA": b"Metadata-Version: 2.1\nName: sgl-kernel\nVersion: 0.3.7+cu128.1\n",
        "sgl_kernel/gemm.py": b"",
    }
    message = refused(make_wheel(changes), tmp_path / "proven")
    assert "violations, nothing was written:" in message
    assert "coverage: add: add_bf16: expected a kernel for sm_80, got none" in message
    assert "coverage: scale_f32: kernel of csrc/kernels/demo.cu: no operator" in message
    assert "policy: METADATA: Requires-Dist: expected torch>=2.7.0, got none" in message
    assert "api: sgl_kernel.gemm.awq_dequantize: expected the published name, got none" in message
    lines = [line for line in message.splitlines() if line.startswith("  ")]
    assert lines == sorted(lines)


def test_a_wrong_record_is_refused_before_it_is_rewritten(make_wheel, tmp_path):
    message = refused(make_wheel(record=b""), tmp_path / "proven")
    assert f"record: {LIBRARY}: in the wheel, but not listed" in message


def test_symbols_that_a_release_lacks_are_refused(make_wheel, compile_so, tmp_path):
    source = """
    namespace c10::cuda { void SetDevice(signed char, bool); }
    __attribute__((constructor)) static void start() { c10::cuda::SetDevice(0, true); }
    """
    bad = compile_so(source, "-nodefaultlibs", "-lc").read_bytes()
    message = refused(make_wheel({LIBRARY: bad}), tmp_path / "proven")
    assert (
        "abi: torch 2.7.0: does not export c10::cuda::SetDevice(signed char, bool) (first exported by 2.8.0)"
        in message
    )
    assert "abi: torch 2.8.0" not in message
    assert f"policy: {LIBRARY}: uses c10::cuda::SetDevice(signed char, bool)" in message


def test_too_large_a_wheel_is_refused(make_wheel, tmp_path):
    message = refused(make_wheel(), tmp_path / "proven", max_mb=0.01)
    assert "expected at most 0.01 MB" in message


def test_what_auditwheel_refuses_is_refused_with_its_words(make_wheel, compile_so, tmp_path):
    bad = compile_so(
        'extern "C" int nowhere(); int x = nowhere();',
        "-L.",
        "-Wl,--no-as-needed",
        "-lnowhere",
        files={"libnowhere.so": compile_so("", "-nostdlib", soname="libnowhere.so.1").read_bytes()},
    )
    message = refused(make_wheel({LIBRARY: bad.read_bytes()}), tmp_path / "proven")
    assert message.startswith("repair: ")
    assert "libnowhere.so.1" in message


def test_a_wheel_without_code_is_refused_with_auditwheels_words(make_wheel, tmp_path):
    assert "repair: " in refused(make_wheel({LIBRARY: None}), tmp_path / "proven")


def test_what_cannot_be_read_is_a_binary_error(make_wheel, tmp_path):
    path = make_wheel()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BinaryError, match=r"sgl_kernel.*\.whl"):
        run_gate(path, tmp_path / "proven")
    assert not (tmp_path / "proven").exists()


def test_a_crash_while_writing_leaves_nothing(make_wheel, tmp_path, monkeypatch):
    dest = tmp_path / "proven"

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gate.os, "replace", fail)
    with pytest.raises(GateError, match="cannot be written: No space left on device"):
        run_gate(make_wheel(), dest)
    assert list(dest.iterdir()) == []


def test_an_unwritable_place_is_told(make_wheel, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GateError, match="cannot be written"):
        run_gate(make_wheel(), tmp_path / "file")


def test_auditwheel_that_does_not_end_is_told(make_wheel, tmp_path, monkeypatch):
    def hang(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(GateError, match=r"repair: .*\.whl: auditwheel: expected an end within 300 s"):
        repair(make_wheel(), tmp_path)


def test_repair_keeps_the_raw_wheel_and_finds_its_tools_anywhere(make_wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    raw = make_wheel()
    (tmp_path / "repaired").mkdir()
    result = repair(raw, tmp_path / "repaired")
    assert raw.exists()
    assert "manylinux" in result.name


def test_repack_makes_scripts_executable_and_nothing_else(make_wheel, tmp_path):
    name = "sgl_kernel-0.3.7+cu128.1.data/scripts/tool"
    with open_wheel(make_wheel({name: b"#!python\n"})) as wheel:
        repack(wheel, {}, tmp_path / "out.whl")
    with zipfile.ZipFile(tmp_path / "out.whl") as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert modes.pop(name) == 0o100755
    assert set(modes.values()) == {0o100644}


RECORD = {
    "cxx_compiler": "GNU 12.2.0",
    "device_compiler": {
        "name": "nvrtc",
        "version": "12.8.93",
        "headers": {"nvidia-cuda-cccl-cu12": "12.8.90"},
    },
}


def test_bill_of_materials_names_what_is_inside():
    text = make_sbom("sgl-kernel", "0.3.7+cu128.1", RECORD, {"a.so": b"code"}, epoch=315532800)
    assert text == make_sbom("sgl-kernel", "0.3.7+cu128.1", RECORD, {"a.so": b"code"}, epoch=315532800)
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["timestamp"] == "1980-01-01T00:00:00+00:00"
    assert document["metadata"]["component"]["purl"] == "pkg:pypi/sgl-kernel@0.3.7%2Bcu128.1"
    found = {item["name"]: item for item in document["components"]}
    assert found["libstdc++"]["version"] == "12.2.0"
    assert found["libstdc++"]["scope"] == "required"
    assert found["nvrtc"]["scope"] == found["gcc"]["scope"] == "excluded"
    assert found["nvidia-cuda-cccl-cu12"]["purl"] == "pkg:pypi/nvidia-cuda-cccl-cu12@12.8.90"
    assert found["a.so"]["hashes"][0]["content"] == hashlib.sha256(b"code").hexdigest()


def test_another_compiler_means_another_bill():
    record = {
        "cxx_compiler": "Clang 18.1.0",
        "device_compiler": {"name": "nvcc", "version": "13.0.88", "headers": {}},
    }
    document = json.loads(make_sbom("sgl-kernel", "1", record, {"a.so": b"code"}, epoch=0))
    names = {item["name"] for item in document["components"]}
    assert names == {"a.so", "clang", "nvcc"}, "libstdc++ is not known to be linked by another compiler"


def test_a_record_without_its_fields_is_a_binary_error(make_wheel, monkeypatch, tmp_path):
    with (
        open_wheel(make_wheel({"INFO/sgl_kernel/build_record.json": b"{}"})) as wheel,
        pytest.raises(BinaryError, match=r"sbom: .*build_record\.json: KeyError"),
    ):
        gate._proofs(wheel, None)
