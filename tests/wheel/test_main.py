"""``python -m sgl_kernel``: the report, on its own and with the documents that a proven wheel carries."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import sgl_kernel
import torch
from sgl_kernel import _report
from sgl_kernel.__main__ import main

RECORD = {
    "architectures": ["80", "90a", "120"],
    "ptx": ["120"],
    "device_compiler": {"name": "nvrtc", "version": "12.8.93"},
    "cxx_compiler": "GNU 12.2.0",
}
CERTIFICATE = {
    "conclusion": "fits",
    "releases": [
        {"torch": "2.6.0", "verdict": "missing", "missing": 9},
        {"torch": "2.7.0", "verdict": "fits", "missing": 0},
        {"torch": "2.15.0", "verdict": "fits", "missing": 0},
    ],
}
COVERAGE = {"ops": {"rmsnorm": {"family": "norm"}}}
SBOM = {"bomFormat": "CycloneDX"}
DOCUMENTS = {
    "sgl_kernel/build_record.json": RECORD,
    "sgl_kernel/abi_certificate.json": CERTIFICATE,
    "sgl_kernel/coverage.json": COVERAGE,
    "sboms/sgl_kernel.cdx.json": SBOM,
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Pretends that the package was installed from a wheel with the given documents."""

    def install(documents: dict[str, Any]) -> Path:
        folder = tmp_path / "sgl_kernel-0.3.7+cu128.9.dist-info"
        contents = {name: json.dumps(value) for name, value in documents.items()}
        contents["METADATA"] = "Metadata-Version: 2.4\nName: sgl-kernel\nVersion: 0.3.7+cu128.9\n"
        contents["RECORD"] = "".join(f"{folder.name}/{name},,\n" for name in contents)
        for name, text in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        distribution = metadata.PathDistribution(folder)
        monkeypatch.setattr(_report, "_distribution", lambda: distribution)
        return folder

    return install


def test_the_command() -> None:
    command = [sys.executable, "-m", "sgl_kernel"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"sgl-kernel      {metadata.version('sgl-kernel')}, API level 0.3.7" in result.stdout
    assert f"torch           {torch.__version__}" in result.stdout
    assert str(Path(sgl_kernel.__file__).with_name("libsgl_kernel.so")) in result.stdout


def test_a_reader_that_leaves_early() -> None:
    command = f"{sys.executable} -m sgl_kernel --json | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("{\n", "")


def test_the_report_of_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == _report.collect()
    assert report["version"] == metadata.version("sgl-kernel")
    assert report["torch"] == {"version": torch.__version__, "cuda": torch.version.cuda}
    assert report["missing"] == sgl_kernel.missing()


def test_the_table(installed: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    installed(DOCUMENTS)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 110 or "/" in line for line in lines)
    assert "sgl-kernel      0.3.7+cu128.9, API level 0.3.7" in lines
    assert "architectures   sm_80, sm_90a, sm_120, compute_120" in lines
    assert "compilers       nvrtc 12.8.93, GNU 12.2.0" in lines
    assert "torch ABI       fits 2.7.0, 2.15.0" in lines
    assert "                does not fit 2.6.0 (9 symbols missing)" in lines
    assert "coverage        python -m sgl_kernel --coverage" in lines
    assert f"not provided    {len(sgl_kernel.missing())} names of the API" in lines
    of_gemm = [name.removeprefix("sgl_kernel.gemm.") for name in sgl_kernel.missing() if ".gemm." in name]
    assert any(line.startswith(f"                gemm: {of_gemm[0]}, ") for line in lines)


def test_the_table_without_documents(
    installed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    installed({})
    assert main([]) == 0
    output = capsys.readouterr().out
    assert "architectures   unknown: no build record in this installation" in output
    assert "torch ABI       no ABI certificate in this installation" in output
    assert "coverage        no coverage manifest in this installation" in output


def test_the_table_with_unreadable_documents(
    installed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = installed(DOCUMENTS)
    for name in DOCUMENTS:
        (folder / name).write_text("{")
    assert main([]) == 0
    assert "no ABI certificate" in capsys.readouterr().out


def test_a_copy_of_no_distribution(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert main([]) == 0
    assert "sgl-kernel      of no installed distribution, API level 0.3.7" in capsys.readouterr().out
    assert main(["--sbom"]) == 1


def test_another_installation_is_not_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = metadata.PathDistribution(tmp_path / "sgl_kernel-0.3.7.dist-info")
    monkeypatch.setattr(metadata, "distribution", lambda name: other)
    assert _report.collect()["version"] is None


@pytest.mark.parametrize(
    ("option", "document"),
    [("--certificate", CERTIFICATE), ("--coverage", COVERAGE), ("--sbom", SBOM)],
)
def test_documents(
    installed: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    option: str,
    document: dict[str, Any],
) -> None:
    installed(DOCUMENTS)
    assert main([option]) == 0
    assert json.loads(capsys.readouterr().out) == document


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--certificate", "ABI certificate"),
        ("--coverage", "coverage manifest"),
        ("--sbom", "bill of materials"),
    ],
)
def test_absent_documents(
    installed: Callable[..., Path], capsys: pytest.CaptureFixture[str], option: str, name: str
) -> None:
    installed({})
    assert main([option]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"sgl_kernel: no {name} in this installation: ")


@pytest.mark.parametrize("options", [("--json", "--sbom"), ("--sbom", "--coverage"), ("--plan", "--sbom")])
def test_one_document_at_a_time(options: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*options])
    assert stop.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


ARCHITECTURES = ["80", "86", "89", "90a", "100", "120"]


@pytest.mark.parametrize(
    ("capability", "code"),
    [
        *(((8, 0), "sm_80"), ((8, 6), "sm_86"), ((8, 7), "sm_86"), ((8, 9), "sm_89"), ((9, 0), "sm_90a")),
        *(((10, 0), "sm_100"), ((10, 3), "sm_100"), ((12, 0), "sm_120"), ((12, 1), "sm_120")),
        *(((13, 0), "compute_120"), ((7, 5), None), ((11, 0), None)),
    ],
)
def test_machine_code(capability: tuple[int, int], code: str | None) -> None:
    assert _report.machine_code(capability, ARCHITECTURES, ["120"]) == code


def test_machine_code_of_one_architecture_alone() -> None:
    assert _report.machine_code((12, 1), ["120a"], ["120a"]) is None
    assert _report.machine_code((12, 0), ["120a", "120"], ["120"]) == "sm_120a"
    assert _report.machine_code((9, 0), ["unheard of"], []) is None


def test_gpus(
    installed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capabilities = [(12, 0), (12, 1), (13, 0), (7, 5)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    installed(DOCUMENTS)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "GPU             GPU 0, compute capability 12.0: runs sm_120" in lines
    assert "GPU             GPU 1, compute capability 12.1: runs sm_120" in lines
    assert "GPU             GPU 2, compute capability 13.0: runs compute_120, compiled by the driver" in lines
    assert "GPU             GPU 3, compute capability 7.5: no code of this build runs on it" in lines


class Driver:
    """Stands in for libcuda and for NVML."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuDriverGetVersion(self, number: Any) -> int:
        number._obj.value = 12080
        return self.status

    def nvmlInit_v2(self) -> int:
        return self.status

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        text.value = b"580.95.05"
        return self.status

    def nvmlShutdown(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("libraries", "text"),
    [
        ({}, "driver          none"),
        ({"libcuda.so.1": Driver(status=100)}, "driver          none"),
        ({"libcuda.so.1": Driver()}, "driver          of unknown release, up to CUDA 12.8"),
        (
            {"libcuda.so.1": Driver(), "libnvidia-ml.so.1": Driver(status=999)},
            "driver          of unknown release, up to CUDA 12.8",
        ),
        (
            {"libcuda.so.1": Driver(), "libnvidia-ml.so.1": Driver()},
            "driver          580.95.05, up to CUDA 12.8",
        ),
    ],
)
def test_driver(
    libraries: dict[str, Driver],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(name: str) -> Driver:
        if name not in libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return libraries[name]

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert main([]) == 0
    assert text in capsys.readouterr().out.splitlines()
