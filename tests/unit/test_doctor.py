"""``doctor``: from facts to findings, on machines that are made up, and on this one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from sgl_kernel_rebuild import doctor, redact
from sgl_kernel_rebuild.audit import torch_requirement
from sgl_kernel_rebuild.cli import main
from sgl_kernel_rebuild.doctor import (
    Driver,
    Extension,
    Gpu,
    ImportResult,
    Library,
    Machine,
    Torch,
    _gpus,
    _machine,
    diagnose,
    examine,
)
from sgl_kernel_rebuild.errors import BinaryError

NEW = "_ZN3c104cuda9SetDeviceEab"
SHOWN = "c10::cuda::SetDevice(signed char, bool)"
GPU = Gpu("NVIDIA GeForce RTX 5090", "120", 32 << 30)
HOPPER = ("sm_50", "sm_80", "sm_90")
SOUND = Machine(
    python="3.12.3",
    platform="Linux",
    glibc="glibc 2.39",
    torch=Torch("2.8.0+cu128", "12.8", None, True, ("sm_90", "sm_120", "compute_120")),
    driver=Driver("570.86.15", "12.8"),
    gpus=(GPU,),
)
EXTENSION = Extension(
    "sgl-kernel", "0.3.7", "/x/sgl_kernel/common_ops.abi3.so", ("2.8.0",), (), ("sm_120",), "12"
)
OTHER = replace(EXTENSION, distribution="other-ext", version="1.0", path="/x/other.so")


def ids(machine):
    return {item.id: item for item in diagnose(machine)}


def test_a_sound_machine_has_no_finding():
    assert diagnose(replace(SOUND, extensions=(EXTENSION,), imports=(ImportResult("sgl_kernel", ""),))) == []


def test_python_that_is_too_old():
    (item,) = diagnose(replace(SOUND, python="3.9.2"))
    assert (item.id, item.severity) == ("python-too-old", "error")


@pytest.mark.parametrize(
    ("driver", "gpus", "cuda", "expected"),
    [
        (None, (), "12.8", ("driver-missing", "note")),
        (Driver("570", "12.8"), (), "12.8", ("gpu-missing", "warning")),
        (Driver("550", "12.4"), (GPU,), "13.0", ("driver-too-old", "error")),
        (Driver("550", "12.4"), (GPU,), "12.8", ("driver-older-minor", "note")),
        (Driver("580", "13.0"), (GPU,), "12.8", None),
    ],
)
def test_the_driver(driver, gpus, cuda, expected):
    machine = replace(SOUND, driver=driver, gpus=gpus, torch=replace(SOUND.torch, cuda=cuda))
    assert [(item.id, item.severity) for item in diagnose(machine)] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("torch", "expected"),
    [
        (None, "torch-missing"),
        (Torch("2.8.0", error="ImportError: libcudart.so.12: cannot open"), "torch-import"),
        (Torch("2.8.0+cpu", None, None, True), "torch-cpu-only"),
        (Torch("2.6.0", "12.4", None, False, ("sm_120",)), "torch-old-cxx-abi"),
        (Torch("2.7.0+cu126", "12.6", None, True, HOPPER), "torch-no-code-sm_120"),
    ],
)
def test_torch(torch, expected):
    (item,) = diagnose(replace(SOUND, torch=torch))
    assert item.id == expected
    assert item.why
    assert item.fix.startswith("pip install ")


def test_torch_of_the_index_on_a_blackwell_card_is_told_from_a_driver_problem():
    item = ids(replace(SOUND, torch=Torch("2.7.0+cu126", "12.6", None, True, HOPPER)))["torch-no-code-sm_120"]
    assert item.title == "torch 2.7.0+cu126 (CUDA 12.6) has no code for the NVIDIA GeForce RTX 5090 (sm_120)"
    assert "not a matter of the driver" in item.why


def test_an_extension_for_another_torch():
    missing = ((NEW, SHOWN, "first exported by 2.8.0"), ("_Zx", "x", "first exported by 2.8.0"))
    found = ids(
        replace(SOUND, extensions=(replace(EXTENSION, missing=missing), replace(OTHER, missing=missing)))
    )
    item = found["extension-abi:sgl-kernel"]
    assert item.severity == "error"
    assert item.title == "sgl-kernel 0.3.7 was not built for torch 2.8.0+cu128"
    assert f"needs {SHOWN} and 1 more (first exported by 2.8.0); it fits torch 2.8.0." in item.why
    assert f"undefined symbol: {NEW}" in item.why
    assert "--find-links wheelhouse sgl-kernel==0.3.7" in item.fix
    assert found["extension-abi:other-ext"].fix == "pip install torch==2.8.0"
    (item,) = diagnose(replace(SOUND, extensions=(replace(OTHER, missing=missing, fits=()),)))
    assert "fits no torch in the atlas" in item.why
    assert item.fix.endswith("--no-binary other-ext other-ext==1.0")


def test_one_finding_for_each_distribution():
    missing = ((NEW, SHOWN, "first exported by 2.8.0"),)
    files = tuple(
        replace(OTHER, path=f"/x/{name}.so", missing=missing, fits=fits, targets=HOPPER)
        for name, fits in (("a", ("2.8.0", "2.9.0")), ("b", ("2.9.0",)), ("c", ("2.9.0",)), ("d", ("2.9.0",)))
    )
    abi, code = diagnose(replace(SOUND, extensions=files))
    assert (abi.id, code.id) == ("extension-abi:other-ext", "extension-no-code-sm_120:other-ext")
    assert abi.why.startswith("a.so, b.so, c.so and 1 more need c10::cuda::SetDevice")
    assert "it fits torch 2.9.0." in abi.why
    assert code.why.startswith("a.so, b.so, c.so and 1 more carry sm_50, sm_80, sm_90: ")


@pytest.mark.parametrize(
    ("wanted", "others", "fix"),
    [
        ("", (), "pip install torch==2.9.0"),
        ("torch==2.9.0", (), "pip install torch==2.8.0 other-ext"),
        ("torch>=2.6", (), "pip install torch==2.9.0"),
        # Another torch would break what fits this one.
        ("", ("2.7.0", "2.8.0"), "pip install --force-reinstall --no-deps --no-build-isolation"),
        ("torch==2.9.0", ("2.8.0",), "pip install torch==2.8.0 other-ext"),
    ],
)
def test_the_fix_keeps_what_fits(wanted, others, fix):
    missing = ((NEW, SHOWN, "first exported by 2.9.0"),)
    odd = replace(OTHER, missing=missing, fits=("2.9.0",), requires_torch=wanted)
    sound = (replace(EXTENSION, distribution="sound", fits=others),) if others else ()
    (item,) = diagnose(replace(SOUND, extensions=(odd, *sound)))
    assert item.fix.startswith(fix)


@pytest.mark.parametrize(
    ("requirements", "wanted"),
    [
        ((), None),
        (("numpy", "torch==2.11.0"), "torch==2.11.0"),
        (("torch",), "torch"),
        (("torch>=2; extra == 'gpu'", "?"), None),
    ],
)
def test_the_torch_that_metadata_admits(requirements, wanted):
    assert torch_requirement(requirements) == wanted


def test_code_for_the_gpu():
    (item,) = diagnose(replace(SOUND, extensions=(replace(EXTENSION, targets=HOPPER),)))
    assert (item.id, item.severity) == ("extension-no-code-sm_120:sgl-kernel", "error")
    assert "carries sm_50, sm_80, sm_90: " in item.why
    (item,) = diagnose(replace(SOUND, extensions=(replace(OTHER, targets=("sm_90", "compute_90")),)))
    assert (item.id, item.severity, item.fix) == ("extension-ptx-sm_120:other-ext", "note", "")
    assert "the driver compiles PTX (compute_90)" in item.title


def test_an_extension_that_cannot_be_read():
    (item,) = diagnose(replace(SOUND, extensions=(replace(OTHER, error="elf: truncated"),)))
    assert (item.id, item.fix) == (
        "extension-unreadable:other-ext:other.so",
        "pip install --force-reinstall other-ext==1.0",
    )


def test_the_loader():
    package = Library("libc10.so", "/site/torch/lib/libc10.so", "packages")
    first = Library("libc10.so", "/opt/old/libc10.so", "LD_LIBRARY_PATH")
    (item,) = diagnose(replace(SOUND, libraries=(first, package)))
    assert (item.id, item.severity, item.fix) == ("loader-libc10", "error", "unset LD_LIBRARY_PATH")
    cuda = Library("libcudart.so.12", "/usr/cuda/libcudart.so.12", "LD_LIBRARY_PATH")
    wheel = Library("libcudart.so.12", "/site/nvidia/cuda_runtime/lib/libcudart.so.12", "packages")
    (item,) = diagnose(replace(SOUND, libraries=(cuda, wheel)))
    assert (item.id, item.severity) == ("loader-libcudart", "warning")
    newer = Library("libcudart.so.13", "/site/nvidia/cu13/lib/libcudart.so.13", "packages")
    (item,) = diagnose(replace(SOUND, libraries=(wheel, newer)))
    assert (item.id, item.severity) == ("loader-cudart-majors", "note")


@pytest.mark.parametrize(
    ("wants", "have", "expected"),
    [
        ("sgl-kernel==0.3.7", None, "sglang-kernel-missing"),
        ("sgl-kernel==0.3.7", "0.2.8", "sglang-kernel-too-old"),
        ("sgl-kernel==0.3.7", "0.3.7+cu128.1", None),
        ("sglang-kernel==0.4.10", "0.4.9", "sglang-kernel-too-old"),
    ],
)
def test_what_sglang_asks_for(wants, have, expected):
    name = wants.partition("==")[0]
    machine = replace(
        SOUND, sglang_wants=wants, distributions={"sglang": "0.5.1", **({name: have} if have else {})}
    )
    assert list(ids(machine)) == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            f"ImportError: x.so: undefined symbol: {NEW}",
            f"That is {SHOWN}, exported by torch 2.8.0 to 2.15.0.",
        ),
        (
            "ModuleNotFoundError: No module named 'triton'",
            "A module that it imports, triton, is not installed.",
        ),
        (
            "ImportError: libcudart.so.12: cannot open shared object file",
            "CUDA runtime that is not installed",
        ),
        ("ended by signal 11", "ended by signal 11"),
    ],
)
def test_an_import_that_fails(error, expected):
    (item,) = diagnose(replace(SOUND, imports=(ImportResult("sgl_kernel", error),)))
    assert item.id == "import:sgl_kernel"
    assert item.why.startswith(error)
    assert expected in item.why


def test_the_worst_comes_first():
    machine = replace(SOUND, driver=None, gpus=(), torch=None, imports=(ImportResult("sgl_kernel", "x"),))
    assert [item.severity for item in diagnose(machine)] == ["error", "warning", "note"]


@pytest.fixture
def bare(monkeypatch):
    """This machine as one without a driver and without distributions, whatever is installed here."""

    def no_driver():
        return None, "NVML Shared Library Not Found", ()

    monkeypatch.setattr(_machine, "ask_driver", no_driver)
    monkeypatch.setattr(_machine.importlib.metadata, "distributions", lambda: iter(()))
    monkeypatch.setattr(_machine, "_sglang_wants", lambda: "")


def run(*arguments):
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


def test_works_without_torch_gpu_and_network(bare):
    result = run()
    assert result.exit_code == 0, result.output
    assert "torch is not installed in this Python" in result.output
    assert "no NVIDIA driver answers" in result.output
    assert "0 errors, " in result.output
    document = json.loads(run("--json").output)
    assert document["healthy"]
    assert [item["id"] for item in document["findings"]][-1] == "driver-missing"
    assert document["machine"]["torch"] is None


FAKE_TORCH = """
__version__ = "2.7.0+cu126"
class version: cuda = "12.6"
class _C: _cuda_getArchFlags = staticmethod(lambda: "sm_50 sm_80 sm_90")
def compiled_with_cxx11_abi(): return True
"""
FAKE_KERNEL = f'raise ImportError("common_ops.abi3.so: undefined symbol: {NEW}")\n'


def install(folder, name, version, members):
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for member, data in members.items():
        (folder / member).parent.mkdir(exist_ok=True)
        (folder / member).write_bytes(data)
    (info / "RECORD").write_text("".join(f"{member},,\n" for member in members))


def test_the_days_that_people_lose(tmp_path, monkeypatch):
    """torch 2.7.0 of the index, the published sgl-kernel and an RTX 5090: two causes, told apart."""
    install(tmp_path, "torch", "2.7.0", {"torch/__init__.py": FAKE_TORCH.encode()})
    files = {
        "sgl_kernel/__init__.py": FAKE_KERNEL.encode(),
        "sgl_kernel/common_ops.abi3.so": b"\x7fELF libtorch",
    }
    install(tmp_path, "sgl_kernel", "0.3.7", files)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(_machine, "ask_driver", lambda: (Driver("570.86.15", "12.8"), "", (GPU,)))
    machine = examine()
    assert machine.torch == Torch("2.7.0+cu126", "12.6", None, True, HOPPER)
    assert machine.imports == (
        ImportResult("sgl_kernel", f"ImportError: common_ops.abi3.so: undefined symbol: {NEW}"),
    )
    assert {item.id for item in diagnose(machine)} == {
        "torch-no-code-sm_120",
        "extension-unreadable:sgl-kernel:common_ops.abi3.so",
        "import:sgl_kernel",
    }
    result = run()
    assert result.exit_code == 14
    assert "common_ops.abi3.so: cannot be read" in result.output


def test_an_installed_extension_is_audited(tmp_path, monkeypatch):
    from sgl_kernel_rebuild.abi import certify
    from sgl_kernel_rebuild.abi._elffile import SharedObject, Symbol
    from sgl_kernel_rebuild.audit import AuditReport

    found = SharedObject("common_ops.abi3.so", undefined=(Symbol(NEW),))
    report = AuditReport(certify("x", [found]), {"common_ops.abi3.so": ("sm_90",)})
    monkeypatch.setattr("sgl_kernel_rebuild.audit.audit", lambda path: [report])
    extension = _machine._extension("sgl-kernel", "0.3.7", tmp_path / "common_ops.abi3.so", "2.7.0")
    assert extension.missing == ((NEW, SHOWN, "first exported by 2.8.0"),)
    assert extension.fits[0] == "2.8.0"
    assert extension.targets == ("sm_90",)
    assert _machine._extension("x", "1", tmp_path / "x.so", None).missing is None

    def fail(path):
        raise BinaryError("elf: x.so: truncated\nTake it again.")

    monkeypatch.setattr("sgl_kernel_rebuild.audit.audit", fail)
    assert _machine._extension("x", "1", tmp_path / "x.so", None).error == "elf: x.so: truncated"


def test_what_the_loader_can_meet(tmp_path, monkeypatch):
    for name in ("libcudart.so.12", "libcudart-1a2b.so.11.0", "libother.so", "libnccl.so.2"):
        (tmp_path / name).touch()
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(_machine, "_ldconfig", lambda: iter([("libcuda.so.1", "/usr/lib/libcuda.so.1")]))
    found = list(_machine._libraries({"LD_LIBRARY_PATH": f"{tmp_path}::/nowhere"}))
    assert [(item.name, item.stem, item.source) for item in found] == [
        ("libcudart-1a2b.so.11.0", "libcudart", "LD_LIBRARY_PATH"),
        ("libcudart.so.12", "libcudart", "LD_LIBRARY_PATH"),
        ("libnccl.so.2", "libnccl", "LD_LIBRARY_PATH"),
        ("libcuda.so.1", "libcuda", "ldconfig"),
    ]


def test_the_driver_is_asked_through_nvml(monkeypatch):
    import pynvml

    answers = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlSystemGetCudaDriverVersion_v2": 12080,
        "nvmlSystemGetDriverVersion": "570.86.15",
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetCudaComputeCapability": (12, 0),
        "nvmlDeviceGetMemoryInfo": type("Memory", (), {"total": 32 << 30}),
        "nvmlDeviceGetName": "NVIDIA GeForce RTX 5090",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
    assert _gpus.ask_driver() == (Driver("570.86.15", "12.8"), "", (GPU,))

    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    driver, error, gpus = _gpus.ask_driver()
    assert (driver, gpus) == (None, ())
    assert "Not Found" in error


def test_a_report_tells_no_secret(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(redact.getpass, "getuser", lambda: "annabel")
    monkeypatch.setattr(redact.socket, "gethostname", lambda: "gpu-box.example.org")
    machine = replace(
        SOUND,
        extensions=(replace(OTHER, path="/home/carol/venv/other.so", missing=((NEW, SHOWN, "x"),)),),
        imports=(
            ImportResult(
                "sgl_kernel",
                "annabel@gpu-box: https://u:p@index/simple hf_abcdefghijkl 10.1.2.3 token=t0psecret",
            ),
        ),
    )
    monkeypatch.setattr(doctor, "examine", lambda: machine)
    target = tmp_path / "report.json"
    result = run("--report", target)
    assert result.exit_code == 14
    assert "read it before you send it" in result.output
    text = target.read_text()
    for secret in ("annabel", "gpu-box", "u:p", "hf_abc", "10.1.2.3", "t0psecret", "carol"):
        assert secret not in text
    document = json.loads(text)
    assert document["machine"]["driver"] == {"version": "570.86.15", "cuda": "12.8"}
    assert document["machine"]["extensions"][0]["path"] == "/home/[user]/venv/other.so"
    assert "[user]@[host]" in document["machine"]["imports"][0]["error"]


def test_a_report_that_cannot_be_written(bare, tmp_path):
    result = run("--report", tmp_path / "none" / "report.json")
    assert result.exit_code == 8
    assert "report.json: cannot be written: No such file or directory" in result.stderr


def test_help_has_an_example():
    assert "Example: sgl-kernel-rebuild doctor --report report.json" in run("--help").output
