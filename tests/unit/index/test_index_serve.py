"""The server: content negotiation, what it hides, and errors before it starts."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator

import pytest
from sgl_kernel_rebuild.errors import HostError, PublishError
from sgl_kernel_rebuild.index import make_server, publish
from sgl_kernel_rebuild.index._serve import negotiate

HTML = "application/vnd.pypi.simple.v1+html"
JSON = "application/vnd.pypi.simple.v1+json"


@pytest.fixture
def index(make_wheel, tmp_path):
    directory = tmp_path / "wheelhouse"
    publish([make_wheel(version="1.0+cu128.1")], directory)
    return directory


@pytest.fixture
def get(index) -> Iterator:
    with make_server(index, is_quiet=True) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def request(path: str, accept: str | None = None, method: str = "GET"):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            connection.request(method, path, headers={} if accept is None else {"Accept": accept})
            response = connection.getresponse()
            body = response.read()
            connection.close()
            return response, body

        yield request
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "text/html; charset=utf-8"),
        ("", "text/html; charset=utf-8"),
        ("*/*", "text/html; charset=utf-8"),
        ("text/html", "text/html; charset=utf-8"),
        (JSON, JSON),
        ("application/vnd.pypi.simple.latest+json", JSON),
        (HTML, HTML),
        ("application/vnd.pypi.simple.latest+html", HTML),
        # What pip sends.
        (f"{JSON}, {HTML}; q=0.1, text/html; q=0.01", JSON),
        (f"{JSON};q=0.1, text/html;q=0.9", "text/html; charset=utf-8"),
        (f"{JSON};q=0, text/html;q=0.1", "text/html; charset=utf-8"),
        (f"{JSON.upper()}", JSON),
        ("application/json", None),
        (f"{JSON};q=0", None),
        (f"{JSON};q=many", None),
        (";;,,;", None),
    ],
)
def test_negotiation(accept, expected):
    choice = negotiate(accept)
    assert (choice and choice[1]) == expected
    if choice:
        assert choice[0].endswith("json" if expected.endswith("json") else "html")


def test_serves_both_forms_of_a_page(get, index):
    for path in ("/simple/", "/simple/demo-pkg/"):
        response, body = get(path)
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert response.headers["Vary"] == "Accept"
        assert body == (index / path[1:] / "index.html").read_bytes()
        response, body = get(path, JSON)
        assert response.headers["Content-Type"] == JSON
        assert json.loads(body)["meta"]["api-version"] == "1.1"


def test_serves_wheels_and_metadata(get, index):
    name = "demo_pkg-1.0+cu128.1-py3-none-any.whl"
    for file in (name, f"{name}.metadata"):
        for path in (f"/{file}", f"/{file.replace('+', '%2B')}"):
            response, body = get(path, JSON)
            assert response.status == 200
            assert body == (index / file).read_bytes()


def test_a_folder_without_its_slash_is_redirected(get):
    response, _ = get("/simple/demo-pkg")
    assert response.status == 301
    assert response.headers["Location"].endswith("/simple/demo-pkg/")


def test_head_has_no_body(get):
    response, body = get("/simple/", JSON, method="HEAD")
    assert (response.status, body) == (200, b"")


def test_a_type_that_is_not_offered(get):
    response, body = get("/simple/", "image/png")
    assert response.status == 406
    assert JSON.encode() in body


@pytest.mark.parametrize(
    "path",
    [
        "/.lock",
        "/%2elock",
        "/.publish/",
        "/simple/nobody/",
        "/../secret",
        "/%2e%2e/secret",
        "//../secret",
        "/nothing",
    ],
)
def test_what_is_not_there_or_not_for_others(get, index, path):
    (index.parent / "secret").write_text("secret")
    (index / ".publish").mkdir()
    response, body = get(path)
    assert response.status == 404
    assert body != b"secret"


def test_is_reachable_from_this_machine_only(index):
    with make_server(index) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_directory_without_an_index_is_refused(tmp_path):
    with pytest.raises(PublishError, match=r"expected an index, found no simple/index\.html"):
        make_server(tmp_path)


def test_a_port_that_is_taken_is_refused(index):
    with make_server(index) as server, pytest.raises(HostError, match="expected a free port"):
        make_server(index, server.server_port)
    with pytest.raises(HostError, match="expected a free port"):
        make_server(index, 70_000)
