"""nvcc and fatbinary of an installed CUDA toolkit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..errors import ToolchainError
from ._model import MINIMUM_CUDA, CompilerIdentity, Job, unknown_arch
from ._nvrtc import compile_error

_VERSION = re.compile(r"release \d+\.\d+, V(\d+)\.(\d+)\.(\d+)")
_CCCL_VERSION = re.compile(r"^#define\s+CCCL_VERSION\s+(\d+)", re.MULTILINE)


class Nvcc:
    """The device compiler of a CUDA toolkit, 12.8 or newer."""

    def __init__(self, path: str | None = None) -> None:
        self.path = find_nvcc(path)
        self._identity: CompilerIdentity | None = None

    def identity(self) -> CompilerIdentity:
        """Return the version that nvcc prints and the version of the toolkit's CCCL headers."""
        if self._identity is None:
            self._identity = CompilerIdentity("nvcc", self._version(), self._headers())
        return self._identity

    def common_options(self) -> list[str]:
        """Return the options of every job."""
        return ["-std=c++17", "-Xptxas", "-v"]

    def header_dirs(self) -> list[str]:
        """Return the toolkit's header folder; nvcc adds it by itself."""
        return [str(Path(os.path.realpath(self.path)).parent.parent / "include")]

    def compile(self, job: Job) -> tuple[bytes, str]:
        """Compile with ``job.root`` as the current folder, so that nvcc meets relative paths only."""
        options = [
            *self.common_options(),
            f"-{job.kind}",
            f"-arch={job.target}",
            # Names of internal symbols would otherwise carry a hash of process and folder.
            f"-frandom-seed={job.source}",
            *(f"-D{define}" for define in job.defines),
            *(f"-I{folder}" for folder in job.includes),
        ]
        with tempfile.TemporaryDirectory(prefix="sglk-nvcc-") as scratch:
            output = Path(scratch, f"device.{job.kind}")
            done = run([self.path, *options, "-o", str(output), job.source], cwd=job.root)
            log = (done.stdout + done.stderr).strip()
            if done.returncode != 0 or not output.is_file():
                known = self._known_archs()
                unsupported = re.search(
                    r"unsupported gpu architecture|not defined for option 'gpu-arch", log, re.I
                )
                if unsupported or (known and job.arch.rstrip("af") not in known):
                    raise unknown_arch(job.arch, self.identity(), known)
                raise compile_error(job, self.identity(), options, log or f"exit status {done.returncode}")
            return output.read_bytes(), log

    def fatbinary(self) -> str:
        """Return the packer that lies beside nvcc."""
        for folder in (os.path.dirname(self.path), os.path.dirname(os.path.realpath(self.path))):
            if found := shutil.which(os.path.join(folder, "fatbinary")):
                return found
        raise ToolchainError(
            f"fatbinary: expected beside {self.path}, got none\nPoint --nvcc at the nvcc of a whole CUDA toolkit."
        )

    def _version(self) -> str:
        done = run([self.path, "--version"])
        match = _VERSION.search(done.stdout)
        if done.returncode != 0 or match is None:
            raise ToolchainError(
                f"nvcc: {self.path}: expected a version such as 'release 12.8, V12.8.93', got\n"
                f"{(done.stdout + done.stderr).strip() or f'exit status {done.returncode}'}\n"
                "Point --nvcc at the nvcc of a CUDA toolkit."
            )
        if (int(match[1]), int(match[2])) < MINIMUM_CUDA:
            raise ToolchainError(
                f"nvcc: {self.path}: expected CUDA 12.8 or newer, got {'.'.join(match.groups())}\n"
                "Install a newer toolkit, or use the nvrtc compiler, which needs none."
            )
        return ".".join(match.groups())

    def _headers(self) -> dict[str, str]:
        for base in self.header_dirs():
            for inner in ("cccl", "."):
                path = Path(base, inner, "cuda", "std", "__cccl", "version.h")
                if path.is_file() and (match := _CCCL_VERSION.search(path.read_text(errors="replace"))):
                    number = int(match[1])  # MMMmmmppp, as the header defines it
                    return {"cccl": f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"}
        return {}

    def _known_archs(self) -> list[str]:
        return re.findall(r"sm_(\d+[af]?)", run([self.path, "--list-gpu-code"]).stdout)


def find_nvcc(path: str | None = None) -> str:
    """Return nvcc from ``path``, then CUDACXX, CUDA_HOME, CUDA_PATH, then PATH.

    The first of these that is set decides: a wrong one is an error, not a reason to look further.
    """
    candidates = [
        ("--nvcc", path),
        ("CUDACXX", os.environ.get("CUDACXX")),
        *(
            (name, os.path.join(os.environ[name], "bin", "nvcc") if os.environ.get(name) else None)
            for name in ("CUDA_HOME", "CUDA_PATH")
        ),
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
    """Run a tool of the toolkit and return its output as text; a tool that cannot start is a ToolchainError."""
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
