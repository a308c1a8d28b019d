"""Wheels of a package index, read by ranges from a server on this machine."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import random
import re
import threading
import zipfile

import pytest
from click.testing import CliRunner
from sgl_kernel_rebuild.cli import main
from sgl_kernel_rebuild.errors import BinaryError
from sgl_kernel_rebuild.index import publish
from sgl_kernel_rebuild.remote import _index, choose_wheel, find_wheels, open_remote
from sgl_kernel_rebuild.wheel.archive import record_digest

ENTRY = 'extern "C" __attribute__((visibility("default"))) '


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with byte ranges (RFC 9110, 14.2), and counts the bytes of wheels that it sent."""

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self._serve(has_body=False)

    def do_GET(self):
        self._serve(has_body=True)

    def _serve(self, *, has_body):
        path = self.translate_path(self.path)
        if self.path.endswith("/"):
            path += "index.html"
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            self.send_error(404)
            return
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        status, start, end = 200, 0, len(data)
        if wanted and self.server.has_ranges:
            status = 206
            start = int(wanted[1]) if wanted[1] else max(len(data) - int(wanted[2]), 0)
            end = min(int(wanted[2]) + 1, len(data)) if wanted[1] and wanted[2] else len(data)
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if path.endswith(".html") else "application/zip")
        self.send_header("Content-Length", str(end - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if has_body:
            if path.endswith(".whl"):
                self.server.sent += end - start
            # A client that has what it wants hangs up.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(data[start:end])


@pytest.fixture
def serve(monkeypatch):
    """Serve a folder of wheels as the index that pip is configured with; return the server."""
    with contextlib.ExitStack() as stack:

        def start(folder):
            publish(sorted(folder.glob("*.whl")), folder / "index")
            handler = functools.partial(_Handler, directory=str(folder / "index"))
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            server.sent, server.has_ranges = 0, True
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            _index._configured_index.cache_clear()
            stack.callback(_index._configured_index.cache_clear)
            return server

        yield start


def write_wheel(folder, name, version, members, tag="cp310-abi3-manylinux_2_28_x86_64"):
    info = f"{name}-{version}.dist-info"
    members = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
    }
    lines = [f"{key},{record_digest(data)},{len(data)}" for key, data in members.items()]
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for key, data in members.items():
            archive.writestr(key, data)
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]))


@pytest.fixture
def demo(tmp_path, compile_so, serve):
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
