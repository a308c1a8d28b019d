"""``atlas``: the tables made from wheels, shown, compared; the committed ones are what ``update`` gives."""

from __future__ import annotations

import itertools
import json

import pytest
from click.testing import CliRunner
from sgl_kernel_rebuild.abi import Atlas, _update
from sgl_kernel_rebuild.abi._update import LIBRARIES, ReleaseExports, compile_atlas, update
from sgl_kernel_rebuild.cli import main
from sgl_kernel_rebuild.errors import BinaryError

ENTRY = '__attribute__((visibility("default"))) '
# A release of torch whose five libraries have small unpacked sizes; all others are read the same way.
CHECKED = "2.13.0"
TAG = "cp312-cp312-manylinux_2_28_x86_64"


@pytest.fixture
def torch_index(tmp_path, compile_so, serve, write_wheel):
    """An index with three releases of a torch, one of them too old, one of them a candidate."""
    old = compile_so(f"{ENTRY}void kept(int) {{}}\n{ENTRY}void gone(int) {{}}").read_bytes()
    new = compile_so(f"{ENTRY}void kept(int) {{}}\n{ENTRY}void gone(long) {{}}").read_bytes()
    other = compile_so(f"{ENTRY}void kept(int) {{}}\n{ENTRY}void own() {{}}").read_bytes()
    for version, library in (("2.4.0", old), ("2.5.0", old), ("2.6.0", new), ("2.7.0rc1", new)):
        members = {"torch/lib/libc10.so": library, "torch/lib/libtorch_cpu.so": other, "torch/x.py": b""}
        write_wheel(tmp_path, "torch", version, members, TAG)
    return serve(tmp_path)


def run(*arguments):
    return CliRunner().invoke(main, ["atlas", *map(str, arguments)])


def test_update_reads_the_libraries_of_every_release(torch_index, tmp_path):
    target = tmp_path / "out" / "atlas.xz"
    result = run("update", "--output", target, "--cache", tmp_path / "cache", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "path": str(target), "releases": ["2.5.0", "2.6.0"], "size": target.stat().st_size, "changed": True
    }  # fmt: skip
    atlas = Atlas.load(target)
    assert atlas.releases == ("2.5.0", "2.6.0")
    assert atlas.libraries == LIBRARIES
    assert atlas.exports("_Z4kepti") == ("2.5.0", "2.6.0")
    assert atlas.library("_Z4kepti") == "libc10.so"
    assert atlas.library("_Z3ownv") == "libtorch_cpu.so"
    assert atlas.difference("2.5.0", "2.6.0") == (["_Z4gonei"], ["_Z4gonel"])
    # Once more, from what was kept: nothing is fetched but the list of wheels, and the bytes are the same.
    torch_index.sent = 0
    again = run("update", "--output", target, "--cache", tmp_path / "cache")
    assert again.output == f"torch 2.5.0, 2.6.0\n{target}: {target.stat().st_size} bytes, unchanged\n"
    assert torch_index.sent == 0


def test_an_interrupted_update_goes_on_where_it_stopped(torch_index, tmp_path, monkeypatch):
    target, cache = tmp_path / "atlas.xz", tmp_path / "cache"
    collect = _update.collect

    def fail_later(archive, members):
        if str(archive.version) == "2.6.0":
            raise BinaryError("wheel: torch: connection lost\nTry again.")
        return collect(archive, members)

    monkeypatch.setattr(_update, "collect", fail_later)
    result = run("update", "--output", target, "--cache", cache)
    assert result.exit_code == 5
    assert "connection lost" in result.stderr
    assert not target.exists()
    assert [path.name for path in cache.iterdir()] == ["torch-2.5.0.txt.xz"]
    monkeypatch.undo()
    started = []
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{torch_index.server_port}/simple/")
    update(target, cache, on_start=lambda release, size: started.append((release, size > 0)))
    assert started == [("2.5.0", False), ("2.6.0", True)]
    # What was kept and is damaged is read again.
    (cache / "torch-2.5.0.txt.xz").write_bytes(b"damaged")
    update(target, cache, on_start=lambda release, size: started.append((release, size > 0)))
    assert started[2:] == [("2.5.0", True), ("2.6.0", False)]


def test_a_release_that_is_not_there(torch_index, tmp_path):
    result = run("update", "--output", tmp_path / "x", "--cache", tmp_path, "--torch", "2.7.0")
    assert result.exit_code == 5
    assert "atlas: torch 2.7.0: expected releases of the index: 2.5.0, 2.6.0" in result.stderr


def test_a_wheel_without_the_libraries_of_torch(tmp_path, serve, write_wheel):
    write_wheel(tmp_path, "torch", "2.5.0", {"torch/x.py": b""}, TAG)
    serve(tmp_path)
    result = run("update", "--output", tmp_path / "x", "--cache", tmp_path)
    assert result.exit_code == 5
    assert "expected libraries of torch, got none" in result.stderr


def test_a_place_that_cannot_be_written(torch_index, tmp_path):
    (tmp_path / "file").touch()
    result = run("update", "--output", tmp_path / "file" / "x", "--cache", tmp_path / "cache")
    assert result.exit_code == 5
    assert "cannot be written: " in result.stderr


def test_the_same_releases_give_the_same_bytes():
    first = ReleaseExports("2.10.0", "a.whl", {"b": "libc10.so", "a": "libtorch_cpu.so"})
    second = ReleaseExports("2.9.0", "b.whl", {"a": "libc10.so"})
    assert compile_atlas([first, second]) == compile_atlas([second, first])


def test_the_committed_table_is_what_update_gives(tmp_path):
    """One release from the package index, end to end: several hundred MB in ranges, nothing kept of them."""
    update(tmp_path / "atlas.xz", tmp_path / "cache", releases=[CHECKED])
    read, committed = Atlas.load(tmp_path / "atlas.xz"), Atlas.load()
    assert read.releases == (CHECKED,)
    assert read.symbols(CHECKED).keys() == committed.symbols(CHECKED).keys()


def test_list():
    rows = json.loads(run("list", "--json").stdout)["releases"]
    assert [row["torch"] for row in rows] == list(Atlas.load().releases)
    assert rows[0]["added"] == rows[0]["removed"] == 0
    for before, after in itertools.pairwise(rows):
        assert before["symbols"] + after["added"] - after["removed"] == after["symbols"]
    assert f"│ 2.13.0 │ {rows[-4]['symbols']:>7} │" in run("list").output


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_ZN3c104cuda9SetDeviceEab", ["c10::cuda::SetDevice(signed char, bool)"]),
        ("c10::cuda::SetDevice(signed char)", ["c10::cuda::SetDevice(signed char)"]),
        (
            "c10::cuda::SetDevice",
            ["c10::cuda::SetDevice(signed char)", "c10::cuda::SetDevice(signed char, bool)"],
        ),
        ("aoti_torch_library_def", ["aoti_torch_library_def"]),
    ],
)
def test_show(name, expected):
    found = json.loads(run("show", name, "--json").stdout)
    assert [item["demangled"] for item in found] == expected


def test_show_tells_the_history():
    assert run("show", "c10::cuda::SetDevice").output == (
        "c10::cuda::SetDevice(signed char)\n  _ZN3c104cuda9SetDeviceEa\n"
        "  libc10_cuda.so: torch 2.5.0 to 2.7.1\n"
        "c10::cuda::SetDevice(signed char, bool)\n  _ZN3c104cuda9SetDeviceEab\n"
        "  libc10_cuda.so: torch 2.8.0 to 2.15.0\n"
    )
    (item,) = json.loads(run("show", "_ZN3c104cuda9SetDeviceEa", "--json").stdout)
    assert (item["first_release"], item["last_release"]) == ("2.5.0", "2.7.1")
    result = run("show", "no::such::thing")
    assert result.exit_code == 5
    assert "no::such::thing: expected a symbol of torch 2.5.0 to 2.15.0" in result.stderr


def test_diff_pairs_what_has_other_parameters():
    result = run("diff", "2.7.0", "2.8.0+cu128", "--match", "c10::cuda::SetDevice")
    assert result.exit_code == 0
    assert result.output == (
        "torch 2.7.0 to 2.8.0: 1 names changed, 0 symbols removed, 0 added\n\nchanged\n"
        "- c10::cuda::SetDevice(signed char)\n+ c10::cuda::SetDevice(signed char, bool)\n"
    )
    document = json.loads(run("diff", "2.7.0", "2.8.0", "--json").stdout)
    assert {"name": "c10::cuda::SetDevice", "old": ["c10::cuda::SetDevice(signed char)"],
            "new": ["c10::cuda::SetDevice(signed char, bool)"]} in document["changed"]  # fmt: skip
    assert len(document["removed"]) > 10_000
    assert "more (--limit 0 shows all)" in run("diff", "2.7.0", "2.8.0").output
    assert "0 names changed, 0 symbols removed, 0 added" in run("diff", "2.9.0", "2.9.1").output
    wrong = run("diff", "2.7.0", "1.0")
    assert wrong.exit_code == 2
    assert "torch 1.0: expected one of 2.5.0, " in wrong.stderr


@pytest.mark.parametrize("command", ["update", "list", "show", "diff"])
def test_help_has_an_example(command):
    assert f"Example: sgl-kernel-rebuild atlas {command}" in run(command, "--help").output
