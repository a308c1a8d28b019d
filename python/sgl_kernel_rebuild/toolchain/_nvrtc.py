"""NVRTC, from the pinned wheels, through cuda.bindings."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from collections.abc import Iterator
from typing import Any

from sgl_kernel_rebuild.errors import CompileError, ToolchainError

from . import _wheels
from ._model import MINIMUM_CUDA, CompilerIdentity, Job, compile_error, unknown_arch


class Nvrtc:
    """The device compiler of the PyPI wheels: no CUDA toolkit, no host compiler."""

    def identity(self) -> CompilerIdentity:
        """Return the versions of the compiler and header wheels; the compiler is not loaded."""
        version = _wheels.version(_wheels.NVRTC)
        if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_CUDA:
            raise ToolchainError(
                f"nvrtc: {_wheels.folder(_wheels.NVRTC)}: expected version 12.8 or newer, got {version}\n"
                "Build in an isolated environment, or install the build requirements of pyproject.toml."
            )
        headers = {name: _wheels.version((folder, name)) for folder, name in (_wheels.CUDART, _wheels.CCCL)}
        return CompilerIdentity("nvrtc", version, headers)

    def common_options(self) -> list[str]:
        """Return the options of every job."""
        return ["-std=c++17", "--ptxas-options=-v"]

    def header_dirs(self) -> list[str]:
        """Return the header folders of the CUDA runtime and CCCL wheels."""
        return [os.path.join(_wheels.folder(each), "include") for each in (_wheels.CUDART, _wheels.CCCL)]

    def compile(self, job: Job) -> tuple[bytes, str]:
        """Compile from ``job.root`` as the current folder, so that NVRTC meets relative paths only."""
        nvrtc = _load()
        known = [str(number) for number in _check(nvrtc, nvrtc.nvrtcGetSupportedArchs())[0]]
        if job.arch.rstrip("af") not in known:
            raise unknown_arch(job.arch, self.identity(), known)
        options = [
            *self.common_options(),
            f"--gpu-architecture={job.target}",
            *(f"-D{define}" for define in job.defines),
            *(f"-I{folder}" for folder in (*job.includes, *self.header_dirs())),
        ]
        with _working_folder(job.root):
            text = _read_source(job)
            (program,) = _check(nvrtc, nvrtc.nvrtcCreateProgram(text, os.fsencode(job.source), 0, [], []))
            try:
                encoded = [os.fsencode(option) for option in options]
                (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
                log = _read(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
                if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                    if "--nv_arch" in log or "invalid value for --gpu-architecture" in log:
                        raise unknown_arch(job.arch, self.identity(), known)
                    raise compile_error(job, self.identity(), options, log or _name(nvrtc, status))
                if job.kind == "cubin":
                    return _read(nvrtc, program, "CUBIN"), log
                return _read(nvrtc, program, "PTX").rstrip(b"\0"), log
            finally:
                nvrtc.nvrtcDestroyProgram(program)


def _read_source(job: Job) -> bytes:
    try:
        with open(job.source, "rb") as stream:
            return stream.read()
    except OSError as err:
        raise CompileError(
            f"source: {job.source}: cannot be read: {err.strerror or err}\nBuild again."
        ) from err


def _load() -> Any:
    """Import the bindings, bound to the library of the wheel and no other of the same name.

    The dynamic loader answers the bindings' dlopen("libnvrtc.so.12") with a library of that soname that
    is already there; NVRTC finds its builtins in the same way.
    """
    try:
        for pattern in (r"libnvrtc-builtins\.so\.\d+\.\d+", r"libnvrtc\.so\.\d+"):
            ctypes.CDLL(_wheels.library(_wheels.NVRTC, pattern), mode=ctypes.RTLD_GLOBAL)
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        loaded = ".".join(str(part) for part in _check(nvrtc, nvrtc.nvrtcVersion()))
    except (ImportError, OSError, RuntimeError) as err:
        raise ToolchainError(
            f"nvrtc: cannot be loaded: {err}\nInstall the build requirements of pyproject.toml."
        ) from err
    expected = _wheels.version(_wheels.NVRTC)
    if not f"{expected}.".startswith(f"{loaded}."):
        raise ToolchainError(
            f"nvrtc: expected {expected} of the installed wheel, got {loaded}\n"
            "Install cuda-bindings of the same CUDA release as nvidia-cuda-nvrtc-cu12."
        )
    return nvrtc


def _check(nvrtc: Any, answer: tuple[Any, ...]) -> tuple[Any, ...]:
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise ToolchainError(
            f"nvrtc: unexpected {_name(nvrtc, status)}\nReport this with the source that led to it."
        )
    return tuple(values)


def _name(nvrtc: Any, status: Any) -> str:
    return bytes(nvrtc.nvrtcGetErrorString(status)[1]).decode()


def _read(nvrtc: Any, program: Any, what: str) -> bytes:
    (size,) = _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program))
    buffer = bytearray(size)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return bytes(buffer)


@contextlib.contextmanager
def _working_folder(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
