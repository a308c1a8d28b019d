"""One device source for one architecture, through the cache."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sgl_kernel_rebuild.errors import CompileError, FactoryError, ToolchainError

from ._cache import SCHEMA, Cache, Entry
from ._deps import SourceFile, SourceTree, depfile, find_root, is_under, source_closure
from ._files import canonical_json, pretty_json, refuse_overwriting, remove_output, sha256, write_output
from ._model import KINDS, CompilerIdentity, DeviceCompiler, Job, Kind, Report, check_arch
from ._ptxas import describe_excess, other_lines, parse_resources


@dataclass(frozen=True)
class CompileResult:
    """The report, and sentences worth a person's attention: spills, a cache that cannot be written."""

    report: Report
    warnings: tuple[str, ...]


def make_compiler(name: str, nvcc: str | None = None) -> DeviceCompiler:
    """Return the device compiler ``nvrtc`` or ``nvcc``."""
    if name == "nvrtc":
        from ._nvrtc import Nvrtc

        return Nvrtc()
    if name == "nvcc":
        from ._nvcc import Nvcc

        return Nvcc(nvcc)
    raise ToolchainError(f"compiler: expected nvrtc or nvcc, got {name!r}\nCorrect SGLK_DEVICE_COMPILER.")


def compile_device(
    source: str | os.PathLike[str],
    *,
    compiler: str = "nvrtc",
    arch: str,
    kind: Kind,
    output: str | os.PathLike[str],
    depfile_path: str | os.PathLike[str] | None = None,
    report_path: str | os.PathLike[str] | None = None,
    includes: Sequence[str | os.PathLike[str]] = (),
    defines: Sequence[str] = (),
    source_root: str | os.PathLike[str] | None = None,
    nvcc: str | None = None,
    cache: Cache | None = None,
) -> CompileResult:
    """Compile ``source`` for ``arch`` (``80``, ``90a``, …) to a cubin or PTX file.

    ``output``, the depfile and the report are each written whole or not at all; after a failure there
    is no output. The bytes depend on the sources, the options and the compiler, not on the folder:
    the compiler sees names relative to ``source_root`` (default: the nearest folder above the source
    that holds a pyproject.toml, else the source's own). With nvrtc the process's current folder is
    changed for the duration of a compilation, so threads must not compile side by side.

    Raises:
        CompileError: the source is missing or does not compile; the message holds the whole log.
        ToolchainError: the compiler, an architecture, an option or the output is unusable.
    """
    started = time.perf_counter()
    refuse_overwriting(Path(output), [source])
    try:
        check_arch(arch)
        if kind not in KINDS:
            raise ToolchainError(f"kind: expected cubin or ptx, got {kind!r}\nAsk for one of these.")
        cache = cache if cache is not None else Cache.from_environment()
        device_compiler = make_compiler(compiler, nvcc)
        absolute = os.path.abspath(source)
        tree = _source_tree(absolute, source_root, includes)
        files = source_closure(absolute, tree)
        job = _make_job(absolute, tree, arch, kind, defines)
        result, data = _compile_cached(device_compiler, job, tree, files, cache, started)
        write_output(Path(output), data)
        if depfile_path is not None:
            write_output(Path(depfile_path), depfile(os.fspath(output), files))
        if report_path is not None:
            write_output(Path(report_path), pretty_json(result.report.to_json()))
    except FactoryError:
        remove_output(Path(output))
        raise
    return result


def _source_tree(
    source: str, root: str | os.PathLike[str] | None, includes: Sequence[str | os.PathLike[str]]
) -> SourceTree:
    base = os.path.abspath(root) if root is not None else find_root(source)
    if not is_under(source, base):
        raise ToolchainError(f"source: {source}: expected a file under {base}\nCorrect --source-root.")
    folders = []
    for folder in includes:
        if not os.path.isdir(folder):
            raise ToolchainError(
                f"include: {os.fspath(folder)}: expected a folder, got none\nCorrect --include."
            )
        folders.append(os.path.abspath(folder))
    return SourceTree(base, tuple(folders))


def _make_job(source: str, tree: SourceTree, arch: str, kind: Kind, defines: Sequence[str]) -> Job:
    for define in defines:
        name = define.split("=", 1)[0]
        if not (name.isascii() and name.isidentifier()):
            raise ToolchainError(f"define: expected NAME or NAME=VALUE, got {define!r}\nCorrect --define.")
    seen_by_compiler = tuple(
        os.path.relpath(folder, tree.root) if is_under(folder, tree.root) else folder
        for folder in tree.includes
    )
    return Job(tree.root, os.path.relpath(source, tree.root), arch, kind, seen_by_compiler, tuple(defines))


def _compile_cached(
    compiler: DeviceCompiler,
    job: Job,
    tree: SourceTree,
    files: list[SourceFile],
    cache: Cache,
    started: float,
) -> tuple[CompileResult, bytes]:
    identity = compiler.identity()
    options = [
        *compiler.common_options(),
        *(f"-D{define}" for define in job.defines),
        *(f"-I{tree.name(folder)}" for folder in tree.includes),
    ]
    key = _cache_key(identity, job, options, files)
    warnings = []
    cached = _load(cache, key)
    if cached is None:
        data, log = compiler.compile(job)
        # Else the output of an edited source would be kept under the key of the one before.
        if source_closure(files[0].path, tree) != files:
            raise CompileError(f"{job.label}: changed while it was compiled\nBuild again.")
        _check_no_machine_path(job, data, [tree.root, *tree.includes, *compiler.header_dirs()])
        report = Report(
            source=files[0].name,
            arch=job.arch,
            kind=job.kind,
            compiler=identity,
            options=options,
            inputs={file.name: file.sha256 for file in files},
            sha256=sha256(data),
            seconds=0.0,
            is_cache_hit=False,
            kernels=parse_resources(log) if job.kind == "cubin" else {},
            diagnostics=other_lines(log),
        )
        try:
            cache.store(key, Entry(data, report.to_json()))
        except OSError as err:
            warnings.append(f"cache: {cache.directory}: not written: {err.strerror or err}")
    else:
        report, data = cached
    seconds = round(time.perf_counter() - started, 3)
    report = dataclasses.replace(report, seconds=seconds, is_cache_hit=cached is not None)
    warnings += [f"{Path(job.source).name} {job.target}: {line}" for line in describe_excess(report.kernels)]
    return CompileResult(report, tuple(warnings)), data


def _load(cache: Cache, key: str) -> tuple[Report, bytes] | None:
    entry = cache.load(key)
    if entry is None:
        return None
    try:
        report = Report.from_json(entry.report)
    except (ValueError, TypeError, KeyError):
        return None
    return (report, entry.output) if report.sha256 == sha256(entry.output) else None


def _cache_key(identity: CompilerIdentity, job: Job, options: list[str], files: list[SourceFile]) -> str:
    parts = {
        "schema": SCHEMA,
        "compiler": [identity.name, identity.version, identity.headers],
        # nvcc reads these two behind our back.
        "environment": [os.environ.get(f"NVCC_{which}_FLAGS", "") for which in ("PREPEND", "APPEND")]
        if identity.name == "nvcc"
        else [],
        "arch": job.arch,
        "kind": job.kind,
        "options": options,
        "files": [[file.name, file.sha256] for file in files],
    }
    return sha256(canonical_json(parts))


def _check_no_machine_path(job: Job, data: bytes, folders: list[str]) -> None:
    for folder in folders:
        # A folder of one letter, or the root itself, would match by chance.
        if len(folder) > 3 and os.fsencode(folder) in data:
            raise CompileError(
                f"{job.label}: the output holds the path {folder}\n"
                "Remove the use of __FILE__ or assert in headers that lie outside the source root."
            )
