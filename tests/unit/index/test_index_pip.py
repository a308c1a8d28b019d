"""The consumer's side: pip itself installs from the index, in each of the ways that the docs name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sgl_kernel_rebuild.index import make_server, publish
from sgl_kernel_rebuild.index._serve import _Handler


@pytest.fixture
def index(make_wheel, tmp_path: Path) -> Path:
    """Two releases; the newer one is not for this Python, so that pip has to read requires-python."""
    directory = tmp_path / "wheel house"
    publish(
        [
            make_wheel(version="1.0+cu128.1", code="VALUE = 'right'\n"),
            make_wheel(version="0.9", code="VALUE = 'old'\n"),
            make_wheel(version="2.0", code="VALUE = 'not for us'\n", requires_python=">=99"),
        ],
        directory,
    )
    return directory


@pytest.fixture
def pip(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run pip without any configuration of this machine."""
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", *arguments, "--no-cache-dir", "--disable-pip-version-check"]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    return run


def _installs(pip, target: Path, *options: str) -> None:
    result = pip("install", "--no-deps", "--target", os.fspath(target), *options, "Demo.pkg")
    assert result.returncode == 0, result.stderr
    assert (target / "demo_pkg" / "__init__.py").read_text() == "VALUE = 'right'\n"
    assert (target / "demo_pkg-1.0+cu128.1.dist-info").is_dir()


@pytest.fixture
def serve() -> Iterator[Callable[[ThreadingHTTPServer], str]]:
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(server: ThreadingHTTPServer) -> str:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def test_find_links(pip, index, tmp_path):
    _installs(pip, tmp_path / "target", "--no-index", "--find-links", os.fspath(index))


def test_file_url(pip, index, tmp_path):
    _installs(pip, tmp_path / "target", "--index-url", (index / "simple").as_uri())


def test_index_serve(pip, index, tmp_path, serve, monkeypatch):
    """Over JSON, and with the metadata file in place of the wheels that do not fit."""
    requests: list[str] = []
    monkeypatch.setattr(_Handler, "log_message", lambda self, form, *args: requests.append(self.requestline))
    url = serve(make_server(index))
    _installs(pip, tmp_path / "target", "--index-url", f"{url}/simple")
    assert any("demo_pkg-1.0%2Bcu128.1-py3-none-any.whl.metadata" in line for line in requests)
    assert not any("demo_pkg-0.9" in line or "demo_pkg-2.0" in line for line in requests)
    _installs(pip, tmp_path / "links", "--no-index", "--find-links", url)


def test_any_static_server(pip, index, tmp_path, serve, monkeypatch):
    """HTML, as ``python -m http.server`` gives it."""
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    handler = partial(SimpleHTTPRequestHandler, directory=os.fspath(index))
    url = serve(ThreadingHTTPServer(("127.0.0.1", 0), handler))
    _installs(pip, tmp_path / "target", "--index-url", f"{url}/simple")


def test_a_wheel_with_other_bytes_is_refused(pip, index, tmp_path, make_wheel):
    """The hashes on the pages are in force: pip compares them."""
    other = make_wheel(version="1.0+cu128.1", code="VALUE = 'forged'\n")
    (index / other.name).write_bytes(other.read_bytes())
    target = os.fspath(tmp_path / "target")
    result = pip(
        "install", "--no-deps", "--target", target, "--index-url", (index / "simple").as_uri(), "demo-pkg"
    )
    assert result.returncode != 0
    assert "DO NOT MATCH THE HASHES" in result.stderr
