"""nvcc: how it is found, asked for its version and called. A small script stands in for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sgl_kernel_rebuild.errors import CompileError, ToolchainError
from sgl_kernel_rebuild.toolchain import Cache, Image, compile_device, pack
from sgl_kernel_rebuild.toolchain._model import Job
from sgl_kernel_rebuild.toolchain._nvcc import Nvcc, find_nvcc

VERSION = "Cuda compilation tools, release 12.9, V12.9.41"
NVCC = """\
#!/bin/sh
home=$(dirname "$0")
case "$*" in
  --version) echo "{version}"; exit 0;;
  --list-gpu-code) printf 'sm_80\\nsm_90\\nsm_90a\\n'; exit 0;;
  *--dryrun*)
    echo "#$ _HERE_=$home" >&2
    echo "#$ INCLUDES=\\"-I$home/../include\\" " >&2
    echo "#$ SYSTEM_INCLUDES=\\"-isystem\\" \\"$home/../include/cccl\\" " >&2
    exit 0;;
esac
pwd > "$home/folder"
printf '%s\\n' "$@" > "$home/arguments"
{body}
"""
SUCCEEDS = """\
while [ "$1" != -o ]; do shift; done
printf '\\177ELF code' > "$2"
echo "ptxas info    : Compiling entry function 'k' for 'sm_90'" >&2
echo "ptxas info    : Used 24 registers, 64 bytes smem" >&2
"""
FATBINARY = """\
#!/bin/sh
printf '%s\\n' "$@" > "$(dirname "$0")/packed"
for each; do case $each in --create=*) printf '\\120\\355\\125\\272fat' > "${each#--create=}";; esac; done
"""


def write_tool(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_nvcc(folder: Path, version: str = VERSION, body: str = SUCCEEDS) -> Path:
    return write_tool(folder / "bin" / "nvcc", NVCC.format(version=version, body=body))


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SGLK_CACHE_DIR", str(tmp_path / "cache"))


def source_in(folder: Path) -> Path:
    source = folder / "csrc" / "k.cu"
    source.parent.mkdir(parents=True)
    source.write_text('extern "C" __global__ void k() {}\n')
    (folder / "pyproject.toml").write_text("")
    return source


def test_order_of_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = {
        name: fake_nvcc(tmp_path / name) for name in ("PATH", "CUDA_PATH", "CUDA_HOME", "CUDACXX", "argument")
    }
    monkeypatch.setenv("PATH", str(tools["PATH"].parent), prepend=":")
    assert find_nvcc() == str(tools["PATH"])
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "CUDA_PATH"))
    assert find_nvcc() == str(tools["CUDA_PATH"])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "CUDA_HOME"))
    assert find_nvcc() == str(tools["CUDA_HOME"])
    monkeypatch.setenv("CUDACXX", str(tools["CUDACXX"]))
    assert find_nvcc() == str(tools["CUDACXX"])
    assert find_nvcc(str(tools["argument"])) == str(tools["argument"])


@pytest.mark.parametrize("origin", ["--nvcc", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "PATH"])
def test_missing_compiler_names_who_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if origin in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(origin, str(tmp_path / "nowhere"))
    with pytest.raises(ToolchainError, match=rf"nvcc: {origin}: expected an executable, got "):
        Nvcc(str(tmp_path / "nowhere") if origin == "--nvcc" else None)


def test_version_and_headers_are_its_identity(tmp_path: Path) -> None:
    header = tmp_path / "include" / "cccl" / "cuda" / "std" / "__cccl" / "version.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define CCCL_VERSION 3000002\n")
    identity = Nvcc(str(fake_nvcc(tmp_path))).identity()
    assert (identity.name, identity.version, identity.headers) == ("nvcc", "12.9.41", {"cccl": "3.0.2"})


def test_old_version_is_refused(tmp_path: Path) -> None:
    tool = fake_nvcc(tmp_path, "Cuda compilation tools, release 12.6, V12.6.85")
    with pytest.raises(ToolchainError, match=r"expected CUDA 12\.8 or newer, got 12\.6\.85"):
        Nvcc(str(tool)).identity()


def test_version_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"expected a version such as .*\nno compiler\nPoint --nvcc at"):
        Nvcc(str(fake_nvcc(tmp_path, "no compiler"))).identity()


def test_tool_that_cannot_run(tmp_path: Path) -> None:
    tool = write_tool(tmp_path / "nvcc", "#!/no/such/interpreter\n")
    with pytest.raises(ToolchainError, match=r"nvcc: .*: cannot be run: No such file"):
        Nvcc(str(tool)).identity()


@pytest.mark.parametrize(("kind", "target"), [("cubin", "sm_90a"), ("ptx", "compute_90a")])
def test_options(tmp_path: Path, kind: str, target: str) -> None:
    job = Job("/project", "csrc/k.cu", "90a", kind, ("csrc", "/outside"), ("A=1",))  # type: ignore[arg-type]
    options = Nvcc(str(fake_nvcc(tmp_path))).options(job)
    assert options[:5] == ["-std=c++17", "-Xptxas", "-v", f"-{kind}", f"-arch={target}"]
    assert options[-3:] == ["-DA=1", "-Icsrc", "-I/outside"]


def test_compiles_from_the_root_with_relative_names(tmp_path: Path) -> None:
    tool = fake_nvcc(tmp_path / "cuda")
    source = source_in(tmp_path / "project")
    report = compile_device(
        source, compiler="nvcc", nvcc=str(tool), arch="90", kind="cubin", output=tmp_path / "k.cubin"
    ).report
    assert (tmp_path / "k.cubin").read_bytes() == b"\x7fELF code"
    assert report.kernels["k"].registers == 24
    assert Path((tool.parent / "folder").read_text().strip()).samefile(tmp_path / "project")
    assert (tool.parent / "arguments").read_text().splitlines()[-1] == "csrc/k.cu"


def test_compiler_version_and_its_variables_are_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_in(tmp_path / "project")

    def is_hit(version: str) -> bool:
        tool = fake_nvcc(tmp_path / "cuda", version)
        return compile_device(
            source, compiler="nvcc", nvcc=str(tool), arch="90", kind="cubin", output=tmp_path / "k.cubin"
        ).report.is_cache_hit

    newer = "release 13.0, V13.0.88"
    assert [is_hit(VERSION), is_hit(VERSION), is_hit(newer), is_hit(newer)] == [False, True, False, True]
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-O0")
    assert not is_hit(newer)


def test_failure_and_success_without_output_are_errors(tmp_path: Path) -> None:
    source = source_in(tmp_path / "project")
    for body, text in (("echo syntax trouble >&2; exit 2", "syntax trouble"), ("exit 0", "exit status 0")):
        tool = fake_nvcc(tmp_path / "cuda", body=body)
        with pytest.raises(CompileError, match=text):
            compile_device(
                source, compiler="nvcc", nvcc=str(tool), arch="90", kind="cubin", output=tmp_path / "k.cubin"
            )
    assert Cache.from_environment().status().entries == 0


def test_source_edited_meanwhile_is_not_cached(tmp_path: Path) -> None:
    source = source_in(tmp_path / "project")
    tool = fake_nvcc(tmp_path / "cuda", body=f"echo '// edited' >> csrc/k.cu\n{SUCCEEDS}")
    with pytest.raises(CompileError, match=r"csrc/k\.cu sm_90: changed while it was compiled"):
        compile_device(
            source, compiler="nvcc", nvcc=str(tool), arch="90", kind="cubin", output=tmp_path / "k.cubin"
        )
    assert Cache.from_environment().status().entries == 0
    assert not (tmp_path / "k.cubin").exists()


def test_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
    tool = fake_nvcc(
        tmp_path / "cuda", body="echo \"nvcc fatal : Unsupported gpu architecture 'sm_120'\" >&2; exit 1"
    )
    with pytest.raises(ToolchainError, match=r"120: unknown to nvcc 12\.9\.41, which knows 80, 90, 90a"):
        compile_device(
            source_in(tmp_path),
            compiler="nvcc",
            nvcc=str(tool),
            arch="120",
            kind="cubin",
            output=tmp_path / "k",
        )


def test_packs_with_fatbinary_of_the_toolkit(tmp_path: Path) -> None:
    tool = fake_nvcc(tmp_path)
    write_tool(tool.parent / "fatbinary", FATBINARY)
    (tmp_path / "a,b.cubin").write_bytes(b"\x7fELF")
    (tmp_path / "k.ptx").write_bytes(b".target sm_90\n")
    images = [Image("ptx", "90", tmp_path / "k.ptx"), Image("cubin", "90a", tmp_path / "a,b.cubin")]
    pack(images, tmp_path / "norm.fatbin", compiler="nvcc", nvcc=str(tool))
    assert (tmp_path / "norm.fatbin").read_bytes() == b"\x50\xed\x55\xbafat"
    assert (tool.parent / "packed").read_text().splitlines() == [
        *("-64", "--compress=false", "--ident=norm", "--create=norm.fatbin"),
        "--image3=kind=elf,sm=90a,file=cubin_90a",
        "--image3=kind=ptx,sm=90,file=ptx_90",
    ]


def test_failing_fatbinary(tmp_path: Path) -> None:
    tool = fake_nvcc(tmp_path)
    write_tool(tool.parent / "fatbinary", "#!/bin/sh\necho mismatch >&2\nexit 1\n")
    (tmp_path / "k.cubin").write_bytes(b"\x7fELF")
    with pytest.raises(ToolchainError, match="fatbinary: norm: mismatch"):
        pack(
            [Image("cubin", "90", tmp_path / "k.cubin")],
            tmp_path / "norm.fatbin",
            compiler="nvcc",
            nvcc=str(tool),
        )


def test_toolkit_without_fatbinary(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"fatbinary: expected in .*bin, beside nvcc, got none"):
        Nvcc(str(fake_nvcc(tmp_path))).fatbinary()
