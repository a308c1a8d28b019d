"""Pages hold what was put into them, whatever characters it has, and damaged pages are refused."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.utils import canonicalize_name
from sgl_kernel_rebuild.index._pages import (
    IndexedWheel,
    PageError,
    read_project_html,
    read_project_json,
    read_root_html,
    read_root_json,
    render_project,
    render_root,
    wheel_url,
)

SHA = "0123456789abcdef" * 4


def _wheel(filename: str, requires_python: str | None = None, size: int = 7) -> IndexedWheel:
    return IndexedWheel(filename, wheel_url(filename), SHA, size, requires_python, SHA[::-1])


WHEELS = st.builds(
    lambda version, build, platform, requires, size: _wheel(
        f"demo_pkg-{version}{build}-py3-none-{platform}.whl", requires, size
    ),
    st.from_regex(r"[0-9]{1,3}!?[1-9](\.[0-9]){0,2}(\+cu[1-9]{3}\.[1-9])?", fullmatch=True),
    st.sampled_from(["", "-1", "-2a"]),
    st.sampled_from(["any", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64.manylinux2014_x86_64"]),
    st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(0, 2**40),
)


@given(st.lists(WHEELS, unique_by=lambda wheel: wheel.filename))
def test_a_project_page_holds_its_wheels(wheels):
    pages = render_project("demo-pkg", wheels)
    assert set(read_project_json(pages["index.json"], "demo-pkg")) == set(wheels)
    assert set(read_project_html(pages["index.html"])) == {replace(wheel, size=None) for wheel in wheels}
    assert pages == render_project("demo-pkg", reversed(wheels))


@given(st.sets(st.from_regex(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", fullmatch=True).map(canonicalize_name)))
def test_the_root_page_holds_its_projects(names):
    pages = render_root(names)
    assert read_root_html(pages["index.html"]) == read_root_json(pages["index.json"]) == sorted(names)


def test_markup_is_escaped():
    page = render_project("demo-pkg", [_wheel("demo_pkg-1.0-py3-none-any.whl", '>=3"><script>')])[
        "index.html"
    ]
    assert b'data-requires-python="&gt;=3&quot;&gt;&lt;script&gt;"' in page
    assert b"<script>" not in page


def test_the_json_page_is_that_of_the_specification():
    page = render_project("demo-pkg", [_wheel("demo_pkg-1.0+a.1-py3-none-any.whl", ">=3.10")])["index.json"]
    assert json.loads(page) == {
        "meta": {"api-version": "1.1"},
        "name": "demo-pkg",
        "versions": ["1.0+a.1"],
        "files": [
            {
                "filename": "demo_pkg-1.0+a.1-py3-none-any.whl",
                "url": "../../demo_pkg-1.0%2Ba.1-py3-none-any.whl",
                "hashes": {"sha256": SHA},
                "size": 7,
                "requires-python": ">=3.10",
                "core-metadata": {"sha256": SHA[::-1]},
            }
        ],
    }


def test_the_html_page_is_that_of_the_specification():
    page = render_project("demo-pkg", [_wheel("demo_pkg-1.0+a.1-py3-none-any.whl", ">=3.10")])["index.html"]
    assert page.startswith(b"<!DOCTYPE html>\n")
    assert b'<meta name="pypi:repository-version" content="1.1">' in page
    anchor = (
        f'<a href="../../demo_pkg-1.0%2Ba.1-py3-none-any.whl#sha256={SHA}" data-requires-python="&gt;=3.10"'
        f' data-core-metadata="sha256={SHA[::-1]}">demo_pkg-1.0+a.1-py3-none-any.whl</a>'
    )
    assert anchor.encode() in page


def test_versions_are_in_their_order_not_in_that_of_the_alphabet():
    names = [f"demo_pkg-{version}-py3-none-any.whl" for version in ("1.10", "1.9", "1.9rc1")]
    page = json.loads(render_project("demo-pkg", map(_wheel, names))["index.json"])
    assert page["versions"] == ["1.9rc1", "1.9", "1.10"]


def _document(**changes: object) -> bytes:
    document = json.loads(render_project("demo-pkg", [_wheel("demo_pkg-1.0-py3-none-any.whl")])["index.json"])
    return json.dumps(document | changes).encode()


def _file(**changes: object) -> bytes:
    return _document(files=[json.loads(_document())["files"][0] | changes])


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"[]", "meta: expected dict"),
        (_document(meta={"api-version": "2.0"}), r"meta\.api-version: expected 1\.x, got '2\.0'"),
        (_document(name="other"), "name: expected 'demo-pkg', got 'other'"),
        (_document(files={}), "files: expected list"),
        (_document(files=[3]), "size: expected int"),
        (_document(versions=[]), r"versions: expected \['1\.0'\], got \[\]"),
        (_file(filename="../../etc/passwd"), "expected the file name of a wheel"),
        (_file(url=None), "url: expected str"),
        (_file(size="7"), "size: expected int"),
        (_file(hashes={"md5": "0"}), "sha256: expected str"),
        (_file(hashes={"sha256": "0"}), "expected a sha256 in hexadecimal, got '0'"),
        (_file(**{"core-metadata": True}), "core-metadata: expected dict"),
        (_file(**{"core-metadata": {"sha256": "?"}}), "expected a sha256 in hexadecimal"),
        (_file(**{"requires-python": 3}), "requires-python: expected str"),
    ],
)
def test_a_damaged_json_page_is_refused(page, message):
    with pytest.raises(PageError, match=message):
        read_project_json(page, "demo-pkg")


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"\xff</html>", "expected UTF-8"),
        (b"<!DOCTYPE html><html><body>", "expected a whole HTML document"),
        (b"<a href='x'>x</a></html>", "expected the file name of a wheel, got 'x'"),
        (b"<a>demo_pkg-1.0-py3-none-any.whl</a></html>", "expected a sha256"),
        (b"<a href='x#sha256=0'>demo_pkg-1.0-py3-none-any.whl</a></html>", "expected a sha256"),
    ],
)
def test_a_damaged_html_page_is_refused(page, message):
    with pytest.raises(PageError, match=message):
        read_project_html(page)


def test_a_damaged_root_page_is_refused():
    with pytest.raises(PageError, match="link of 'demo': expected demo/, got '/simple/demo/'"):
        read_root_html(b"<a href='/simple/demo/'>demo</a></html>")
    with pytest.raises(PageError, match="expected a normalized project name, got 'Demo'"):
        read_root_html(b"<a href='Demo/'>Demo</a></html>")
    with pytest.raises(PageError, match="projects: expected list"):
        read_root_json(b'{"meta": {"api-version": "1.1"}}')
    with pytest.raises(PageError, match=r"expected a normalized project name, got '\.\.'"):
        read_root_json(b'{"meta": {"api-version": "1.1"}, "projects": [{"name": ".."}]}')


@given(st.binary() | st.text().map(lambda text: f"<a {text}</a><![{text}</html>".encode(errors="replace")))
def test_no_page_crashes_the_reader(page):
    read_json = partial(read_project_json, project="demo-pkg")
    for read in (read_project_html, read_json, read_root_html, read_root_json):
        with contextlib.suppress(PageError):
            read(page)
