"""What the parts of the toolchain hand to each other."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from sgl_kernel_rebuild.errors import CompileError, ToolchainError

Kind = Literal["cubin", "ptx"]
KINDS: tuple[Kind, ...] = ("cubin", "ptx")

# Device features that we rely on (sm_120, `a` targets of Blackwell) begin with this release.
MINIMUM_CUDA = (12, 8)

_ARCH = re.compile(r"[0-9]{2,3}[af]?")


def check_arch(arch: str) -> str:
    """Return ``arch`` if it reads like a compute capability: ``80``, ``90a``, ``120f``."""
    if not _ARCH.fullmatch(arch):
        raise ToolchainError(
            "architecture: expected two or three digits and an optional a or f, such as 80, 90a, 120;"
            f" got {arch!r}\n"
            "Correct the architecture list (SGLK_ARCHS)."
        )
    return arch


def unknown_arch(arch: str, compiler: CompilerIdentity, known: list[str]) -> ToolchainError:
    """Return the error for an architecture that the compiler does not have."""
    return ToolchainError(
        f"architecture: {arch}: unknown to {compiler.name} {compiler.version}, which knows {', '.join(known)}"
        " (and a or f variants of some)\n"
        "Choose among these (SGLK_ARCHS), or use a newer compiler."
    )


def compile_error(job: Job, compiler: CompilerIdentity, options: list[str], log: str) -> CompileError:
    """Return the error of a failed job: file, target, options and the whole log."""
    return CompileError(
        f"{compiler.name} {compiler.version}: {job.label}: does not compile\n"
        f"options: {' '.join(options)}\n{log}\nCorrect {job.source} and build again."
    )


@dataclass(frozen=True)
class CompilerIdentity:
    """A device compiler: everything about it that can change the machine code.

    ``headers`` maps each set of toolchain headers to its version.
    """

    name: str
    version: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What one entry point takes, as ptxas reports it: registers per thread, the rest in bytes.

    ``stack`` is the larger of the entry's own frame and the cumulative stack of its calls; ``shared``
    is static shared memory; ``constant`` is the sum over the constant banks that ptxas lists.
    """

    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0
    constant: int = 0


@dataclass(frozen=True)
class Report:
    """One compilation. Paths are relative to the source root, options are free of machine paths.

    ``inputs`` maps every file of the source closure to its sha256. ``diagnostics`` is what the compiler
    said beyond the resources: its warnings, line by line. ``kernels`` is empty for PTX, which
    no assembler has seen yet. ``seconds`` is what this run took, a cache hit included.
    """

    source: str
    arch: str
    kind: Kind
    compiler: CompilerIdentity
    options: list[str]
    inputs: dict[str, str]
    sha256: str
    seconds: float
    is_cache_hit: bool
    kernels: dict[str, Resources]
    diagnostics: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Report:
        """Rebuild a report from `to_json`; raises ValueError, TypeError or KeyError if it is not one."""
        fields = dict(data)
        fields["compiler"] = CompilerIdentity(**fields["compiler"])
        fields["kernels"] = {name: Resources(**used) for name, used in fields["kernels"].items()}
        if fields["kind"] not in KINDS or not isinstance(fields["inputs"], dict):
            raise ValueError("no compile report")
        check_arch(fields["arch"])
        return cls(**fields)


@dataclass(frozen=True)
class Job:
    """One source for one architecture, as a compiler sees it from the folder ``root``.

    ``includes`` are relative to ``root`` where they lie under it, so that no machine path enters the
    preprocessor and, through ``__FILE__``, the machine code.
    """

    root: str
    source: str
    arch: str
    kind: Kind
    includes: tuple[str, ...]
    defines: tuple[str, ...]

    @property
    def target(self) -> str:
        """``sm_90a`` or ``compute_120``."""
        return ("sm_" if self.kind == "cubin" else "compute_") + self.arch

    @property
    def label(self) -> str:
        """How messages name this job: ``csrc/kernels/norm.cu sm_90a``."""
        return f"{self.source} {self.target}"


class DeviceCompiler(Protocol):
    """The contract that NVRTC and nvcc both meet."""

    def identity(self) -> CompilerIdentity:
        """Return name and versions, without loading the compiler where that can be avoided."""
        ...

    def common_options(self) -> list[str]:
        """Return the options of every job, except architecture, kind, includes and definitions."""
        ...

    def header_dirs(self) -> list[str]:
        """Return the folders of the toolchain's own headers."""
        ...

    def compile(self, job: Job) -> tuple[bytes, str]:
        """Return output and log; raise CompileError with the whole log, or ToolchainError."""
        ...
