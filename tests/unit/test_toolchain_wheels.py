"""The compiler's wheels: where they are, which version, and what happens if one is missing or wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sgl_kernel_rebuild.errors import CompileError, ToolchainError
from sgl_kernel_rebuild.toolchain import Image, _nvrtc, compile_device, pack
from sgl_kernel_rebuild.toolchain._model import Job
from sgl_kernel_rebuild.toolchain._nvrtc import Nvrtc
from sgl_kernel_rebuild.toolchain._wheels import CCCL, CUDART, NVFATBIN, NVRTC, folder, library, version

VERSIONS = {NVRTC: "12.8.93", CUDART: "12.8.90", CCCL: "12.8.90", NVFATBIN: "12.8.90"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module path on which the four wheels are, with libraries that are none."""
    site = tmp_path / "site-[packages]"
    for component, number in VERSIONS.items():
        (site / "nvidia" / component[0] / "lib").mkdir(parents=True)
        (site / f"{component[1].replace('-', '_')}-{number}.dist-info").mkdir()
    for name in ("libnvrtc.so.12", "libnvrtc.alt.so.12", "libnvrtc-builtins.so.12.8"):
        (site / "nvidia" / "cuda_nvrtc" / "lib" / name).write_text("no library")
    (site / "nvidia" / "nvfatbin" / "lib" / "libnvfatbin.so.12").write_text("no library")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "missing"), str(site)])
    monkeypatch.setenv("SGLK_CACHE_DIR", str(tmp_path / "cache"))
    return site


def remove_dist_info(site: Path, component: tuple[str, str]) -> None:
    (site / f"{component[1].replace('-', '_')}-{VERSIONS[component]}.dist-info").rmdir()


def test_places_and_versions(site: Path) -> None:
    assert folder(NVRTC) == str(site / "nvidia" / "cuda_nvrtc")
    assert version(NVRTC) == "12.8.93"
    assert library(NVRTC, r"libnvrtc\.so\.\d+").endswith("libnvrtc.so.12")
    identity = Nvrtc().identity()
    assert (identity.name, identity.version) == ("nvrtc", "12.8.93")
    assert identity.headers == {CUDART[1]: "12.8.90", CCCL[1]: "12.8.90"}


@pytest.mark.parametrize("component", [NVRTC, CUDART, CCCL])
def test_missing_wheel_is_named(site: Path, component: tuple[str, str]) -> None:
    (site / "nvidia" / component[0]).rename(site / "elsewhere")
    with pytest.raises(ToolchainError, match=rf"{component[1]}: no nvidia/{component[0]} on the module path"):
        Nvrtc().identity()


def test_wheel_without_version(site: Path) -> None:
    remove_dist_info(site, CCCL)
    with pytest.raises(ToolchainError, match=r"nvidia-cuda-cccl-cu12: .*: expected one .*dist-info, got 0"):
        Nvrtc().identity()


def test_old_compiler_is_refused(site: Path) -> None:
    remove_dist_info(site, NVRTC)
    (site / "nvidia_cuda_nvrtc_cu12-12.6.77.dist-info").mkdir()
    with pytest.raises(ToolchainError, match=r"nvrtc: .*: expected version 12\.8 or newer, got 12\.6\.77"):
        Nvrtc().identity()


def test_missing_library_is_named(site: Path) -> None:
    (site / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12").unlink()
    with pytest.raises(ToolchainError, match=r"nvidia-cuda-nvrtc-cu12: .*lib: expected one library libnvrtc"):
        library(NVRTC, r"libnvrtc\.so\.\d+")


def test_compiler_that_cannot_be_loaded(site: Path, tmp_path: Path) -> None:
    source = tmp_path / "k.cu"
    source.write_text("")
    with pytest.raises(ToolchainError, match=r"nvrtc: cannot be loaded: .*libnvrtc-builtins"):
        compile_device(source, arch="90", kind="cubin", output=tmp_path / "k.cubin")


def test_packer_that_cannot_be_loaded(site: Path, tmp_path: Path) -> None:
    (tmp_path / "k.cubin").write_bytes(b"\x7fELF")
    with pytest.raises(ToolchainError, match=r"nvfatbin: .*libnvfatbin\.so\.12: cannot be loaded"):
        pack([Image("cubin", "90", tmp_path / "k.cubin")], tmp_path / "k.fatbin")


class FakeNvrtc:
    """cuda.bindings.nvrtc, as far as loading it goes."""

    class nvrtcResult:
        NVRTC_SUCCESS = 0

    def __init__(self, *answer: int) -> None:
        self.answer = answer

    def nvrtcVersion(self) -> tuple[int, ...]:
        return self.answer

    def nvrtcGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, f"NVRTC_ERROR_{status}".encode()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((0, 12, 9), "nvrtc: expected 12.8.93 of the installed wheel, got 12.9\n"),
        ((7, 0, 0), "nvrtc: unexpected NVRTC_ERROR_7\n"),
    ],
)
def test_bindings_that_reach_another_library(
    site: Path, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, ...], message: str
) -> None:
    monkeypatch.setattr(_nvrtc.ctypes, "CDLL", lambda path, mode: None)
    monkeypatch.setattr(_nvrtc.importlib, "import_module", lambda name: FakeNvrtc(*answer))
    with pytest.raises(ToolchainError) as failure:
        _nvrtc._load()
    assert str(failure.value).startswith(message)


def test_source_that_vanishes_before_it_is_compiled(tmp_path: Path) -> None:
    job = Job(str(tmp_path), str(tmp_path / "gone.cu"), "90", "cubin", (), ())
    with pytest.raises(CompileError, match=r"source: .*gone\.cu: cannot be read: No such file"):
        _nvrtc._read_source(job)
