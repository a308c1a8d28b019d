"""Wheels of a package index, read by ranges from a server on this machine."""

from __future__ import annotations

import json
import random

import pytest
from click.testing import CliRunner
from sgl_kernel_rebuild.cli import main
from sgl_kernel_rebuild.errors import BinaryError
from sgl_kernel_rebuild.remote import _index, choose_wheel, find_wheels, open_remote

ENTRY = 'extern "C" __attribute__((visibility("default"))) '


@pytest.fixture
def demo(tmp_path, compile_so, serve, write_wheel):
    """An index with two versions of ``demo``; the second has 4 MB of data that an audit does not read."""
    declaration = "namespace c10::cuda { void SetDevice(signed char, bool); }\n"
    late = compile_so(declaration + ENTRY + "void f() { c10::cuda::SetDevice(0, true); }").read_bytes()
    data = random.Random(0).randbytes(1 << 22)
    write_wheel(tmp_path, "demo", "1.0", {"demo/late.so": late})
    write_wheel(tmp_path, "demo", "2.0", {"demo/late.so": late, "demo/data.bin": data})
    return serve(tmp_path)


def test_audit_of_a_wheel_on_the_index(demo, tmp_path):
    result = CliRunner().invoke(main, ["audit", "demo==2.0", "--json"])
    assert result.exit_code == 10, result.output
    (report,) = json.loads(result.stdout)["reports"]
    assert report["subject"] == "demo 2.0"
    assert report["objects"][0]["fits"][0] == "2.8.0"
    wheel = next((tmp_path / "index").glob("demo-2.0-*.whl"))
    local = json.loads(CliRunner().invoke(main, ["audit", str(wheel), "--json"]).stdout)
    assert local["reports"] == [report]


def test_a_terminal_sees_progress(demo, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = CliRunner().invoke(main, ["audit", "demo==2.0", "--json"])
    assert "demo-2.0-cp310-abi3-manylinux_2_28_x86_64.whl" in result.stderr
    assert len(json.loads(result.stdout)["reports"]) == 1
    monkeypatch.delenv("FORCE_COLOR")
    assert CliRunner().invoke(main, ["audit", "demo==2.0"]).stderr == ""


def test_only_what_is_read_is_fetched(demo):
    read = []
    with open_remote(choose_wheel("demo==2.0"), on_read=read.append) as wheel:
        assert wheel.binaries == ("demo/late.so",)
        for found, _ in wheel.shared_objects():
            assert found.name == "demo/late.so"
        assert sum(read) == wheel.members["demo/late.so"].file_size
        assert demo.sent < 200_000 < wheel.members["demo/data.bin"].compress_size


def test_the_newest_version_that_fits_is_chosen(demo):
    assert [str(wheel.version) for wheel in find_wheels("demo")] == ["1.0", "2.0"]
    assert str(choose_wheel("demo>=1").version) == "2.0"
    assert str(choose_wheel("demo<2").version) == "1.0"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "demo==3.0",
            "demo==3.0: expected a wheel for Linux on x86-64, got none; the newest versions",
        ),
        ("nothing==1.0", "index: nothing: the package index has no such project"),
    ],
)
def test_what_the_index_does_not_have(demo, target, message):
    result = CliRunner().invoke(main, ["audit", target])
    assert result.exit_code == 5
    assert message in result.stderr


def test_a_server_without_ranges_is_refused(demo):
    demo.has_ranges = False
    with (
        pytest.raises(BinaryError, match=r"demo-2\.0-.*: expected a wheel read by HTTP ranges"),
        open_remote(choose_wheel("demo==2.0")),
    ):
        pass


def test_no_server_is_a_sentence(monkeypatch):
    monkeypatch.setattr(_index, "_TRIES", 0)
    with pytest.raises(BinaryError, match=r"the page of the project from http://127\.0\.0\.1:9/simple, got"):
        find_wheels("demo", index_url="http://user:secret@127.0.0.1:9/simple")
