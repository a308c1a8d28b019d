"""The commands ``audit`` and ``gate``: what they print, and how they end."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from sgl_kernel_rebuild.cli import main

NEW = "_ZN3c104cuda9SetDeviceEab"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def published(tmp_path):
    """A list of symbols that torch 2.8.0 alone has, as the published sgl-kernel 0.3.7 has them."""
    path = tmp_path / "undefined.txt"
    path.write_text(f"# of a published wheel\n{NEW}\n_ZNK3c106SymInt6sym_neERKS0_\ncudaMalloc\n_ZdlPvm\n")
    return path


def test_audit_of_a_list_says_what_fits_and_what_not(published):
    result = run("audit", published)
    assert result.exit_code == 10
    assert (
        "fits torch 2.8.0 only; under 2.7.0 it lacks c10::cuda::SetDevice(signed char, bool)" in result.output
    )
    rows = {
        line.split("│")[1].strip(): line.split("│")[2].strip()
        for line in result.output.splitlines()
        if line.count("│") == 3
    }
    assert rows["2.8.0"] == "fits"
    assert rows["2.7.0"] == rows["2.9.1"] == "misses 1"


def test_audit_for_one_release(published):
    result = run("audit", published, "--torch", "2.7.0+cu126")
    assert result.exit_code == 10
    for line in ("first exported by 2.8.0", "nearest there: c10::cuda::SetDevice(signed char)"):
        assert line in result.output
    assert run("audit", published, "--torch", "2.8.0").exit_code == 0
    assert run("audit", published, "--torch", "2.8.0", "--torch", "2.7.0").exit_code == 10


def test_audit_of_a_wheel_that_fits(make_wheel):
    result = run("audit", make_wheel())
    assert result.exit_code == 0, result.output
    assert "sgl-kernel 0.3.7+cu128.1 fits torch 2.7.0 to 2.15.0" in result.output
    assert "sm_80, sm_86, sm_90a, sm_120" in result.output


def test_audit_of_a_shared_object(tmp_path, library):
    path = tmp_path / "libsgl_kernel.so"
    path.write_bytes(library)
    assert run("audit", path).exit_code == 0


def test_audit_as_json(published, make_wheel):
    result = run("audit", published, make_wheel(), "--json", "--torch", "2.7.0")
    assert result.exit_code == 10
    document = json.loads(result.output)
    assert document["errors"] == []
    listed, wheel = document["reports"]
    assert listed["releases"] == [{"torch": "2.7.0", "verdict": "missing", "missing": 1}]
    (missing,) = listed["objects"][0]["missing"]["2.7.0"]
    assert missing["demangled"] == "c10::cuda::SetDevice(signed char, bool)"
    assert missing["first_release"] == "2.8.0"
    assert missing["nearest"] == ["c10::cuda::SetDevice(signed char)"]
    assert listed["objects"][0]["code"] is None
    assert wheel["objects"][0]["code"] == ["sm_80", "sm_86", "sm_90a", "sm_120", "compute_120"]


def test_audit_goes_on_after_a_file_that_cannot_be_read(published, tmp_path):
    bad = tmp_path / "bad.so"
    bad.write_bytes(b"\x7fELF")
    result = run("audit", bad, tmp_path / "none.so", published)
    assert result.exit_code == 5
    assert f"error: elf: {bad}: expected an ELF header of 64 bytes, got 4 bytes: truncated" in result.output
    assert "none.so: cannot be read" in result.output
    assert "fits torch 2.8.0 only" in result.output


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty", b""),
        ("mac.dylib", b"\xcf\xfa\xed\xfe" + bytes(60)),
        ("win.pyd", b"MZ" + bytes(62)),
        ("text.so", b"hello"),
    ],
)
def test_audit_refuses_what_is_no_binary_of_linux(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    result = run("audit", path)
    assert result.exit_code == 5
    assert f"elf: {path}: expected an ELF file" in result.output


def test_audit_of_an_unknown_release_is_wrong_usage(published):
    result = run("audit", published, "--torch", "1.0")
    assert result.exit_code == 2
    assert "torch 1.0: expected one of 2.5.0" in result.output


def test_gate_prints_what_it_proved(make_wheel, tmp_path):
    result = run("gate", make_wheel(), "--output", tmp_path / "proven")
    assert result.exit_code == 0, result.output
    (proven,) = (tmp_path / "proven").iterdir()
    assert result.output.splitlines()[-1] == str(proven)
    for text in ("2.15.0", "scale", "compute_120", "not provided yet", "glibc needed", "sha256"):
        assert text in result.output


def test_gate_as_json(make_wheel, tmp_path):
    result = run("gate", make_wheel(), "--output", tmp_path / "proven", "--json")
    document = json.loads(result.output)
    (proven,) = (tmp_path / "proven").iterdir()
    assert document["path"] == str(proven)
    assert document["coverage"]["schema"] == document["abi"]["schema"] == document["api"]["schema"] == 1


def test_gate_ends_with_its_own_code(make_wheel, tmp_path):
    result = run("gate", make_wheel(record=b""), "--output", tmp_path / "proven")
    assert result.exit_code == 6
    assert result.output.startswith("error: gate: ")
    assert result.output.rstrip().splitlines()[-1] == "Correct the source and build again."
    assert run("gate", make_wheel(), "--output", tmp_path / "x", "--max-mb", "0").exit_code == 2


@pytest.mark.parametrize("command", ["audit", "gate"])
def test_help_has_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: sgl-kernel-rebuild {command} " in result.output
