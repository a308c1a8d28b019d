"""The source closure and the depfile."""

from __future__ import annotations

from pathlib import Path

import pytest
from sgl_kernel_rebuild.errors import CompileError, ToolchainError
from sgl_kernel_rebuild.toolchain._deps import SourceFile, SourceTree, depfile, find_root, source_closure


def names(source: Path, root: Path, *includes: Path) -> list[str]:
    tree = SourceTree(str(root), tuple(str(folder) for folder in includes))
    return [file.name for file in source_closure(str(source), tree)]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_closure_is_transitive_and_ordered(tmp_path: Path) -> None:
    source = write(
        tmp_path / "k.cu", '#include "z.cuh"\n  #  include\t"sub/a.cuh"  // why\n#include <cuda_fp16.h>\n'
    )
    write(tmp_path / "z.cuh", '#pragma once\n#include \\\n  "sub/b.cuh"\r\n')
    write(tmp_path / "sub" / "a.cuh", '#include "b.cuh"\n#include "../deep.cuh"\n')
    write(tmp_path / "sub" / "b.cuh", "")
    write(tmp_path / "deep.cuh", '#include "cuda_bf16.h"\n')
    assert names(source, tmp_path) == ["k.cu", "deep.cuh", "sub/a.cuh", "sub/b.cuh", "z.cuh"]


def test_cycle_ends(tmp_path: Path) -> None:
    source = write(tmp_path / "k.cu", '#include "a.cuh"\n')
    write(tmp_path / "a.cuh", '#include "b.cuh"\n#include "a.cuh"\n')
    write(tmp_path / "b.cuh", '#include "a.cuh"\n#include "k.cu"\n')
    assert names(source, tmp_path) == ["k.cu", "a.cuh", "b.cuh"]


def test_file_beside_comes_before_include_folders(tmp_path: Path) -> None:
    source = write(tmp_path / "one" / "k.cu", '#include "a.cuh"\n#include "b.cuh"\n#include <a.cuh>\n')
    write(tmp_path / "one" / "a.cuh", "")
    write(tmp_path / "two" / "a.cuh", "")
    write(tmp_path / "two" / "b.cuh", "")
    write(tmp_path / "three" / "b.cuh", "")
    found = names(source, tmp_path, tmp_path / "two", tmp_path / "three")
    assert found == ["one/k.cu", "one/a.cuh", "two/a.cuh", "two/b.cuh"]


def test_headers_outside_the_root_have_machine_independent_names(tmp_path: Path) -> None:
    source = write(tmp_path / "root" / "k.cu", '#include "a.cuh"\n#include "../beside/b.cuh"\n')
    write(tmp_path / "outside" / "a.cuh", "")
    write(tmp_path / "beside" / "b.cuh", "")
    found = names(source, tmp_path / "root", tmp_path / "outside")
    assert found == ["k.cu", "../beside/b.cuh", "<include 0>/a.cuh"]


def test_conditional_include_is_listed(tmp_path: Path) -> None:
    source = write(tmp_path / "k.cu", '#if 0\n#include "a.cuh"\n#endif\n')
    write(tmp_path / "a.cuh", "")
    assert names(source, tmp_path) == ["k.cu", "a.cuh"]


def test_computed_include_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "k.cu", "#include HEADER\n")
    with pytest.raises(CompileError, match=r'include: .*k\.cu: expected "name" or <name>, got \'HEADER\''):
        names(source, tmp_path)


def test_unreadable_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "k.cu").mkdir()
    with pytest.raises(CompileError, match=r"source: .*k\.cu: cannot be read: Is a directory"):
        names(tmp_path / "k.cu", tmp_path)


def test_root_is_where_the_project_file_lies(tmp_path: Path) -> None:
    source = write(tmp_path / "project" / "csrc" / "k.cu", "")
    assert find_root(str(source)) == str(source.parent)
    write(tmp_path / "project" / "pyproject.toml", "")
    assert find_root(str(source)) == str(tmp_path / "project")


def test_depfile_escapes_what_make_would_split() -> None:
    files = [SourceFile("/a b/$x#.cu", "x.cu", ""), SourceFile("/c.cuh", "c.cuh", "")]
    assert depfile("out dir/k.cubin", files) == b"out\\ dir/k.cubin: \\\n  /a\\ b/$$x\\#.cu \\\n  /c.cuh\n"


def test_depfile_refuses_line_breaks() -> None:
    with pytest.raises(ToolchainError, match=r"depfile: .*: expected a path without line breaks"):
        depfile("k.cubin", [SourceFile("/a\nb.cu", "b.cu", "")])
