"""nvcc and fatbinary of an installed CUDA toolkit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path

from sgl_kernel_rebuild.errors import ToolchainError

from ._model import MINIMUM_CUDA, CompilerIdentity, Job, compile_error, unknown_arch

_VERSION = re.compile(r"release \d+\.\d+, V(\d+)\.(\d+)\.(\d+)")
_BIN_FOLDER = re.compile(r"^#\$ _HERE_=(.+)$", re.MULTILINE)
_INCLUDES = re.compile(r"^#\$ (?:SYSTEM_)?INCLUDES=(.*)$", re.MULTILINE)
_QUOTED_PATH = re.compile(r'"(?:-I)?(/[^"]*)"')
_CCCL_VERSION = re.compile(r"^#define\s+CCCL_VERSION\s+(\d+)", re.MULTILINE)
_UNKNOWN_ARCH = re.compile(r"unsupported gpu architecture|is not defined for option 'gpu-arch", re.IGNORECASE)


class Nvcc:
    """The device compiler of a CUDA toolkit, 12.8 or newer."""

    def __init__(self, path: str | None = None) -> None:
        self.path = find_nvcc(path)

    def identity(self) -> CompilerIdentity:
        """Return the version that nvcc prints and the version of the toolkit's CCCL headers."""
        return self._identity

    def common_options(self) -> list[str]:
        """Return the options of every job."""
        return ["-std=c++17", "-Xptxas", "-v"]

    def header_dirs(self) -> list[str]:
        """Return the toolkit's header folders; nvcc adds them by itself."""
        lines = " ".join(_INCLUDES.findall(self._dryrun))
        return [os.path.normpath(path) for path in _QUOTED_PATH.findall(lines)]

    def options(self, job: Job) -> list[str]:
        """Return the options of ``job``, output and source excepted."""
        return [
            *self.common_options(),
            f"-{job.kind}",
            f"-arch={job.target}",
            # Names of internal symbols carry a hash of this path, which is absolute unless told otherwise.
            *("-Xcicc", "--orig_src_path_name", "-Xcicc", job.source),
            *(f"-D{define}" for define in job.defines),
            *(f"-I{folder}" for folder in job.includes),
        ]

    def compile(self, job: Job) -> tuple[bytes, str]:
        """Compile with ``job.root`` as the current folder, so that nvcc meets relative paths only."""
        options = self.options(job)
        with tempfile.TemporaryDirectory(prefix="sglk-nvcc-") as scratch:
            output = Path(scratch, f"device.{job.kind}")
            done = run([self.path, *options, "-o", str(output), job.source], cwd=job.root)
            log = (done.stdout + done.stderr).strip()
            if done.returncode == 0 and output.is_file():
                return output.read_bytes(), log
        known = re.findall(r"sm_(\d+[af]?)", run([self.path, "--list-gpu-code"]).stdout)
        if _UNKNOWN_ARCH.search(log) or (known and job.arch.rstrip("af") not in known):
            raise unknown_arch(job.arch, self.identity(), known)
        raise compile_error(job, self.identity(), options, log or f"exit status {done.returncode}")

    def fatbinary(self) -> str:
        """Return the packer of the toolkit."""
        match = _BIN_FOLDER.search(self._dryrun)
        folder = match[1] if match else os.path.dirname(self.path)
        found = shutil.which(os.path.join(folder, "fatbinary"))
        if found is None:
            raise ToolchainError(
                f"fatbinary: expected in {folder}, beside nvcc, got none\n"
                "Point --nvcc at the nvcc of a whole CUDA toolkit."
            )
        return found

    @cached_property
    def _identity(self) -> CompilerIdentity:
        done = run([self.path, "--version"])
        match = _VERSION.search(done.stdout)
        if done.returncode != 0 or match is None:
            raise ToolchainError(
                f"nvcc: {self.path}: expected a version such as 'release 12.8, V12.8.93', got\n"
                f"{(done.stdout + done.stderr).strip() or f'exit status {done.returncode}'}\n"
                "Point --nvcc at the nvcc of a CUDA toolkit."
            )
        version = ".".join(match.groups())
        if (int(match[1]), int(match[2])) < MINIMUM_CUDA:
            raise ToolchainError(
                f"nvcc: {self.path}: expected CUDA 12.8 or newer, got {version}\n"
                "Install a newer toolkit, or use the nvrtc compiler, which needs none."
            )
        return CompilerIdentity("nvcc", version, self._header_versions())

    @cached_property
    def _dryrun(self) -> str:
        # nvcc may be a wrapper script or a link: only nvcc itself knows where its toolkit lies.
        done = run([self.path, "--dryrun", "-cubin", "-x", "cu", os.devnull])
        return done.stdout + done.stderr

    def _header_versions(self) -> dict[str, str]:
        for folder in self.header_dirs():
            path = Path(folder, "cuda", "std", "__cccl", "version.h")
            if path.is_file() and (match := _CCCL_VERSION.search(path.read_text(errors="replace"))):
                number = int(match[1])  # MMMmmmppp, as that header defines it
                return {"cccl": f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"}
        return {}


def find_nvcc(path: str | None = None) -> str:
    """Return nvcc from ``path``, then CUDACXX, CUDA_HOME, CUDA_PATH, then PATH.

    The first of these that is set decides: a wrong one is an error, not a reason to look further.
    """
    homes = [(name, os.environ.get(name)) for name in ("CUDA_HOME", "CUDA_PATH")]
    candidates = [
        ("--nvcc", path),
        ("CUDACXX", os.environ.get("CUDACXX")),
        *((name, home and os.path.join(home, "bin", "nvcc")) for name, home in homes),
        ("PATH", "nvcc"),
    ]
    origin, wanted = next((origin, wanted) for origin, wanted in candidates if wanted)
    found = shutil.which(wanted)
    if found is None:
        raise ToolchainError(
            f"nvcc: {origin}: expected an executable, got {wanted}, which is none\n"
            "Name one by --nvcc or CUDA_HOME, or use the nvrtc compiler, which needs no toolkit."
        )
    return os.path.abspath(found)


def run(command: list[str], cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool of the toolkit, its output as text; one that cannot start is a ToolchainError."""
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
    except OSError as err:
        raise ToolchainError(
            f"{os.path.basename(command[0])}: {command[0]}: cannot be run: {err.strerror or err}\n"
            "Point --nvcc at the nvcc of a CUDA toolkit."
        ) from err
