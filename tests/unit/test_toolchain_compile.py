"""Compilation through the real NVRTC, and through nvcc where a toolkit is installed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sgl_kernel_rebuild
from sgl_kernel_rebuild.errors import CompileError, FactoryError, ToolchainError
from sgl_kernel_rebuild.toolchain import Cache, CompileResult, Report, _cache, compile_device
from sgl_kernel_rebuild.toolchain._nvcc import Nvcc

KERNEL = """\
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda/std/cstdint>
#include "common/scale.cuh"

extern "C" __global__ void scale_bf16(__nv_bfloat16* out, float factor, cuda::std::int64_t size) {
  __shared__ float tile[64];
  tile[threadIdx.x % 64] = __bfloat162float(out[threadIdx.x]);
  __syncthreads();
  if (threadIdx.x < size) out[threadIdx.x] = __float2bfloat16(scaled(tile[0], factor));
}

extern "C" __global__ void to_fp8(__nv_fp8_e4m3* out, const __half* in) {
  out[threadIdx.x] = __nv_fp8_e4m3(in[threadIdx.x]);
}
"""
HEADER = (
    "#pragma once\n__device__ inline float scaled(float value, float factor) { return value * factor; }\n"
)


def _available_compilers() -> list[str]:
    try:
        Nvcc().identity()
    except ToolchainError:
        return ["nvrtc"]
    return ["nvrtc", "nvcc"]


COMPILERS = _available_compilers()


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SGLK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SGLK_CACHE_LIMIT_MB", raising=False)
    return tmp_path / "cache"


def write_project(folder: Path, kernel: str = KERNEL) -> Path:
    (folder / "csrc" / "kernels" / "common").mkdir(parents=True)
    (folder / "pyproject.toml").write_text("")
    (folder / "csrc" / "kernels" / "common" / "scale.cuh").write_text(HEADER)
    source = folder / "csrc" / "kernels" / "scale.cu"
    source.write_text(kernel)
    return source


def build(
    source: Path, output: Path, arch: str = "90", kind: str = "cubin", **options: object
) -> CompileResult:
    return compile_device(source, arch=arch, kind=kind, output=output, **options)  # type: ignore[arg-type]


def run_cli(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    package = Path(sgl_kernel_rebuild.__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-m", "sgl_kernel_rebuild.toolchain", *(str(argument) for argument in arguments)],
        env={**os.environ, "PYTHONPATH": str(package), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def compile_arguments(source: Path, folder: Path, arch: str = "90", compiler: str = "nvrtc") -> list[object]:
    return [
        *("compile", "--compiler", compiler, "--arch", arch, "--kind", "cubin"),
        *("--output", folder / "k.cubin", "--depfile", folder / "k.d", "--report", folder / "k.json", source),
    ]


@pytest.mark.parametrize("arch", ["80", "89", "90a", "120", "120a"])
def test_nvrtc_compiles_for_architecture(tmp_path: Path, arch: str) -> None:
    result = build(write_project(tmp_path), tmp_path / "k.cubin", arch)
    assert (tmp_path / "k.cubin").read_bytes().startswith(b"\x7fELF")
    assert set(result.report.kernels) == {"scale_bf16", "to_fp8"}
    assert result.report.kernels["scale_bf16"].shared == 256
    assert 0 < result.report.kernels["scale_bf16"].registers <= 255
    assert result.report.source == "csrc/kernels/scale.cu"
    assert list(result.report.inputs) == ["csrc/kernels/scale.cu", "csrc/kernels/common/scale.cuh"]
    assert result.warnings == ()


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compilers_meet_one_contract(tmp_path: Path, compiler: str) -> None:
    source = write_project(tmp_path)
    code = build(source, tmp_path / "k.cubin", compiler=compiler).report
    ptx = build(source, tmp_path / "k.ptx", "120", "ptx", compiler=compiler).report
    assert code.compiler.name == ptx.compiler.name == compiler
    assert set(code.kernels) == {"scale_bf16", "to_fp8"}
    assert code.kernels["scale_bf16"].shared == 256
    assert ptx.kernels == {}
    text = (tmp_path / "k.ptx").read_text()
    assert ".target sm_120" in text
    assert "\0" not in text


@pytest.mark.parametrize("compiler", COMPILERS)
def test_bytes_do_not_depend_on_folder(tmp_path: Path, compiler: str) -> None:
    # Internal linkage and __FILE__ are the two ways by which a folder gets into machine code.
    kernel = """
    #include "common/where.cuh"
    namespace { __device__ int counter; __device__ __noinline__ int next() { return ++counter; } }
    extern "C" __global__ void k(int* out, const char** name) { *out = next(); *name = where(); }
    """
    where = "#pragma once\n__device__ inline const char* where() { return __FILE__; }\n"
    outputs: list[Path] = []
    for name in ("one", "another/deeper"):
        source = write_project(tmp_path / name, kernel)
        (source.parent / "common" / "where.cuh").write_text(where)
        outputs.append(tmp_path / f"{len(outputs)}.cubin")
        cache = Cache(tmp_path / f"cache-{len(outputs)}")
        report = build(source, outputs[-1], compiler=compiler, includes=[source.parent], cache=cache).report
        assert not report.is_cache_hit
        assert report.options[-1] == "-Icsrc/kernels"
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert b"where.cuh" in outputs[0].read_bytes()


@pytest.mark.parametrize("compiler", COMPILERS)
def test_machine_path_in_output_is_refused(tmp_path: Path, compiler: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "where.cuh").write_text("__device__ inline const char* where() { return __FILE__; }\n")
    source = write_project(
        tmp_path / "project",
        '#include "where.cuh"\nextern "C" __global__ void k(const char** name) { *name = where(); }\n',
    )
    with pytest.raises(CompileError, match=r"output holds the path .*outside\nRemove the use of __FILE__"):
        build(source, tmp_path / "k.cubin", compiler=compiler, includes=[outside])
    assert not (tmp_path / "k.cubin").exists()


@pytest.mark.parametrize("compiler", COMPILERS)
def test_failure_holds_the_whole_log(tmp_path: Path, compiler: str) -> None:
    source = write_project(
        tmp_path, 'extern "C" __global__ void k() { first_mistake(); second_mistake(); }\n'
    )
    stale = tmp_path / "k.cubin"
    stale.write_bytes(b"of an earlier run")
    with pytest.raises(CompileError) as caught:
        build(source, stale, "90a", compiler=compiler, defines=["FLAG=1"])
    message = str(caught.value)
    for part in ("csrc/kernels/scale.cu sm_90a", "-DFLAG=1", "first_mistake", "second_mistake", compiler):
        assert part in message
    assert not stale.exists()


@pytest.mark.parametrize("compiler", COMPILERS)
def test_definitions_reach_the_compiler(tmp_path: Path, compiler: str) -> None:
    kernel = '#if VALUE != 7\n#error wrong value\n#endif\nextern "C" __global__ void k() {}\n'
    source = write_project(tmp_path, kernel)
    build(source, tmp_path / "k.cubin", compiler=compiler, defines=["VALUE=7"])
    with pytest.raises(CompileError, match="wrong value"):
        build(source, tmp_path / "k.cubin", compiler=compiler, defines=["VALUE=8"])


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("arch", ["77", "80a", "99"])
def test_architecture_unknown_to_compiler(tmp_path: Path, compiler: str, arch: str) -> None:
    with pytest.raises(
        ToolchainError, match=rf"architecture: {arch}: unknown to {compiler} .*knows .*80, 86"
    ):
        build(write_project(tmp_path), tmp_path / "k.cubin", arch, compiler=compiler)


@pytest.mark.parametrize("arch", ["", "8", "sm_80", "80b", "1200", "90a ", "\uff19\uff10"])
def test_architecture_that_is_none(tmp_path: Path, arch: str) -> None:
    with pytest.raises(ToolchainError, match="architecture: expected two or three digits"):
        build(write_project(tmp_path), tmp_path / "k.cubin", arch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "fatbin"}, "kind: expected cubin or ptx, got 'fatbin'"),
        ({"compiler": "clang"}, "compiler: expected nvrtc or nvcc, got 'clang'"),
        ({"defines": ["1X"]}, "define: expected NAME or NAME=VALUE, got '1X'"),
        ({"includes": ["no-such-folder"]}, "include: no-such-folder: expected a folder"),
        ({"source_root": "elsewhere"}, "source: .*scale.cu: expected a file under .*elsewhere"),
    ],
)
def test_unusable_argument(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ToolchainError, match=message):
        build(write_project(tmp_path), tmp_path / "k.cubin", **options)  # type: ignore[arg-type]


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"source: .*nothing\.cu: cannot be read: No such file"):
        build(tmp_path / "nothing.cu", tmp_path / "k.cubin")


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolchainError, match=r"output: .*k\.cubin: cannot be written"):
        build(write_project(tmp_path), tmp_path / "file" / "k.cubin")


def test_output_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"output: .*cannot be written"):
        build(write_project(tmp_path), Path(""))


def test_output_that_is_the_source(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    with pytest.raises(ToolchainError, match=r"output: .*scale\.cu: expected a new file, got an input"):
        build(source, source, "no architecture")
    assert source.read_text() == KERNEL


def test_current_folder_is_kept(tmp_path: Path) -> None:
    before = Path.cwd()
    build(write_project(tmp_path), tmp_path / "k.cubin")
    assert Path.cwd() == before


def test_stack_spills_and_warnings_are_reported(tmp_path: Path) -> None:
    kernel = """
    extern "C" __global__ void __launch_bounds__(1024, 2) heavy(float* x, int n) {
      int unused_variable;
      float values[96];
      #pragma unroll
      for (int i = 0; i < 96; ++i) values[i] = x[i * n];
      __syncthreads();
      #pragma unroll
      for (int i = 0; i < 96; ++i) x[i * n + 1] = values[95 - i] * values[i];
    }
    """
    source = write_project(tmp_path, kernel)
    for is_hit in (False, True):
        result = build(source, tmp_path / "k.cubin")
        assert result.report.is_cache_hit is is_hit
        (warning,) = result.warnings
        used = result.report.kernels["heavy"]
        assert used.spill_stores > 0
        assert warning.startswith(
            f"scale.cu sm_90: heavy: {max(used.spill_stores, used.spill_loads)} bytes spilled"
        )
        assert "unused_variable" in "\n".join(result.report.diagnostics)
        assert "ptxas" not in "\n".join(result.report.diagnostics)


def test_second_compilation_hits_the_cache(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    first = build(source, tmp_path / "1.cubin").report
    second = build(source, tmp_path / "2.cubin").report
    assert (first.is_cache_hit, second.is_cache_hit) == (False, True)
    assert (tmp_path / "1.cubin").read_bytes() == (tmp_path / "2.cubin").read_bytes()
    assert first.kernels == second.kernels
    assert Cache.from_environment().status().entries == 1


def test_cache_is_shared_between_folders(tmp_path: Path) -> None:
    build(write_project(tmp_path / "one"), tmp_path / "1.cubin")
    assert build(write_project(tmp_path / "two"), tmp_path / "2.cubin").report.is_cache_hit


@pytest.mark.parametrize("what", ["source", "header", "arch", "kind", "define"])
def test_whatever_matters_misses_the_cache(tmp_path: Path, what: str) -> None:
    source = write_project(tmp_path)
    build(source, tmp_path / "1.cubin")
    if what == "source":
        source.write_text(KERNEL + "\n")
    elif what == "header":
        (source.parent / "common" / "scale.cuh").write_text(HEADER + "\n")
    result = build(
        source,
        tmp_path / "2.cubin",
        "80" if what == "arch" else "90",
        "ptx" if what == "kind" else "cubin",
        defines=["X"] if what == "define" else [],
    )
    assert not result.report.is_cache_hit


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign report"])
def test_damaged_entry_is_compiled_again_and_replaced(
    tmp_path: Path, cache_folder: Path, damage: str
) -> None:
    source = write_project(tmp_path)
    build(source, tmp_path / "1.cubin")
    (entry,) = cache_folder.rglob("*.entry")
    content = entry.read_bytes()
    if damage == "foreign report":
        Cache.from_environment().store(entry.stem, _cache.Entry(b"code", {"source": "another"}))
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        entry.write_bytes({"truncated": content[:-10], "flipped": flipped, "empty": b""}[damage])
    assert not build(source, tmp_path / "2.cubin").report.is_cache_hit
    assert (tmp_path / "2.cubin").read_bytes() == (tmp_path / "1.cubin").read_bytes()
    assert build(source, tmp_path / "3.cubin").report.is_cache_hit


def test_unwritable_cache_is_a_warning(tmp_path: Path, cache_folder: Path) -> None:
    cache_folder.write_text("a file where the folder should be")
    result = build(write_project(tmp_path), tmp_path / "k.cubin")
    (warning,) = result.warnings
    assert warning.startswith(f"cache: {cache_folder}: not written: ")
    assert (tmp_path / "k.cubin").exists()


def test_full_disk_of_the_cache_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_cache, "replace_bytes", fail)
    result = build(write_project(tmp_path), tmp_path / "k.cubin")
    assert "No space left on device" in result.warnings[0]


def test_cli_writes_output_depfile_and_report(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    done = run_cli(*compile_arguments(source, tmp_path / "out"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["k.cubin", "k.d", "k.json"]
    report = Report.from_json(json.loads((tmp_path / "out" / "k.json").read_text()))
    assert report.arch == "90"
    assert report.options == ["-std=c++17", "--ptxas-options=-v"]
    rule = (tmp_path / "out" / "k.d").read_text()
    assert rule.startswith(f"{tmp_path / 'out' / 'k.cubin'}: \\\n")
    assert str(source) in rule
    assert str(source.parent / "common" / "scale.cuh") in rule


def test_cli_failure_has_exit_code_and_no_traceback(tmp_path: Path) -> None:
    source = write_project(tmp_path, "__global__ void k() { mistake(); }\n")
    done = run_cli(*compile_arguments(source, tmp_path / "out"))
    assert done.returncode == CompileError.exit_code
    assert done.stderr.startswith("error: nvrtc ")
    assert "mistake" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_cli_concurrent_processes_agree(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    folders = [tmp_path / str(number) for number in range(4)]
    with ThreadPoolExecutor(len(folders)) as pool:
        done = list(pool.map(lambda folder: run_cli(*compile_arguments(source, folder)), folders))
    assert [each.returncode for each in done] == [0] * len(folders)
    assert len({(folder / "k.cubin").read_bytes() for folder in folders}) == 1


def test_cli_hit_loads_no_compiler(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    arguments = compile_arguments(source, tmp_path)
    build(source, tmp_path / "k.cubin")
    done = run_cli(*arguments, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sgl_kernel_rebuild.toolchain._compile" in modules
    assert not {
        name for name in modules if name.split(".")[0] in ("cuda", "nvidia", "torch", "click", "rich")
    }


def test_cli_cache_shows_and_clears(tmp_path: Path, cache_folder: Path) -> None:
    build(write_project(tmp_path), tmp_path / "k.cubin")
    status = json.loads(run_cli("cache", "--json").stdout)
    assert status["directory"] == str(cache_folder)
    assert status["entries"] == 1
    assert status["size"] > 0
    assert status["limit"] == 512 << 20
    assert f"{cache_folder}: 0 entries" in run_cli("cache", "--clear").stdout


def test_cli_help_names_every_command() -> None:
    text = run_cli("--help").stdout
    for command in ("compile", "pack", "record", "cache"):
        assert command in text


def test_every_error_names_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(FactoryError) as caught:
        build(write_project(tmp_path), tmp_path / "k.cubin", "sm_80")
    assert str(caught.value).splitlines()[-1].startswith("Correct ")
