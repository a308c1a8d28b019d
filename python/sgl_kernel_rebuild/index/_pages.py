"""The pages of the Simple repository API: written from wheels, and read back.

Specification: https://packaging.python.org/en/latest/specifications/simple-repository-api/
(PEP 503 HTML, PEP 592, 629 version, 658 and 714 metadata, 691 JSON, 700 sizes and versions).
``upload-time`` is optional there (PEP 700) and left out: the same wheels give the same pages.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, urldefrag

from packaging.tags import Tag
from packaging.utils import BuildTag, NormalizedName, canonicalize_name, parse_wheel_filename
from packaging.version import Version

__all__ = [
    "HTML_PAGE",
    "JSON_PAGE",
    "IndexedWheel",
    "PageError",
    "Pages",
    "read_links",
    "read_project_html",
    "read_project_json",
    "read_root_html",
    "read_root_json",
    "render_project",
    "render_root",
    "wheel_url",
]

API_VERSION = "1.1"
HTML_PAGE = "index.html"
JSON_PAGE = "index.json"

Pages = dict[str, bytes]

_SHA256 = re.compile(r"[0-9a-f]{64}")


class PageError(ValueError):
    """A page cannot be read as what its name says it is."""


@dataclass(frozen=True)
class IndexedWheel:
    """A wheel as a project page describes it.

    ``url`` is relative to the project page. ``size`` (bytes) is None where the page has no place for
    it (HTML); ``metadata_sha256`` is the hash of the file ``<wheel>.metadata``.
    """

    filename: str
    url: str
    sha256: str
    size: int | None
    requires_python: str | None
    metadata_sha256: str | None

    @property
    def project(self) -> NormalizedName:
        return parse_wheel_filename(self.filename)[0]

    @property
    def version(self) -> Version:
        return parse_wheel_filename(self.filename)[1]

    @property
    def tags(self) -> frozenset[Tag]:
        return parse_wheel_filename(self.filename)[3]

    @property
    def requirement(self) -> str:
        """What to ask pip for: a local version by its public one, or a later release would win (PEP 440)."""
        return f"{self.project}=={self.version.public}" if self.version.local else self.project

    @property
    def identity(self) -> tuple[NormalizedName, Version, BuildTag, frozenset[Tag]]:
        """What an installer tells wheels apart by: two file names with one identity are the same wheel."""
        return parse_wheel_filename(self.filename)


def read_links(page: bytes) -> dict[str, str]:
    """File name -> sha256 of the links to wheels on a page of any form; raises PageError."""
    found = {}
    for attributes, text in _anchors(page):
        _, fragment = urldefrag(attributes.get("href", ""))
        if fragment.startswith("sha256="):
            found[_wheel_name(text)] = _sha256(fragment.removeprefix("sha256="))
    return found


def wheel_url(filename: str) -> str:
    """Where a wheel lies, seen from ``simple/<project>/``."""
    return f"../../{quote(filename)}"


def render_root(projects: Iterable[str]) -> Pages:
    """The two root pages over normalized project names."""
    names = sorted(set(projects))
    document = {"meta": {"api-version": API_VERSION}, "projects": [{"name": name} for name in names]}
    anchors = [_anchor({"href": f"{quote(name)}/"}, name) for name in names]
    return {HTML_PAGE: _html("Simple index", anchors), JSON_PAGE: _json(document)}


def render_project(project: str, wheels: Iterable[IndexedWheel]) -> Pages:
    """The two pages of one project, oldest version first."""
    ordered = sorted(wheels, key=lambda wheel: (wheel.version, wheel.filename))
    versions = list(dict.fromkeys(str(wheel.version) for wheel in ordered))
    document = {
        "meta": {"api-version": API_VERSION},
        "name": project,
        "versions": versions,
        "files": [_json_file(wheel) for wheel in ordered],
    }
    anchors = [_anchor(_html_attributes(wheel), wheel.filename) for wheel in ordered]
    return {HTML_PAGE: _html(f"Links for {project}", anchors), JSON_PAGE: _json(document)}


def read_root_html(page: bytes) -> list[str]:
    """Project names of a root page; raises PageError."""
    names = []
    for attributes, text in _anchors(page):
        if attributes.get("href") != f"{quote(text)}/":
            raise PageError(f"link of {text!r}: expected {quote(text)}/, got {attributes.get('href')!r}")
        names.append(_project_name(text))
    return names


def read_root_json(page: bytes) -> list[str]:
    """Project names of a root page; raises PageError."""
    document = _load(page)
    return [_project_name(_get(item, "name", str)) for item in _get(document, "projects", list)]


def read_project_html(page: bytes) -> list[IndexedWheel]:
    """Wheels of a project page; raises PageError."""
    return [_read_anchor(attributes, text) for attributes, text in _anchors(page)]


def read_project_json(page: bytes, project: str) -> list[IndexedWheel]:
    """Wheels of the page of ``project``; raises PageError, also where ``versions`` misses one of them."""
    document = _load(page)
    if (name := _get(document, "name", str)) != project:
        raise PageError(f"name: expected {project!r}, got {name!r}")
    wheels = [_read_json_file(item) for item in _get(document, "files", list)]
    versions = _get(document, "versions", list)
    if versions != (expected := list(dict.fromkeys(str(wheel.version) for wheel in wheels))):
        raise PageError(f"versions: expected {expected}, got {versions}")
    return wheels


def _json_file(wheel: IndexedWheel) -> dict[str, Any]:
    item: dict[str, Any] = {
        "filename": wheel.filename,
        "url": wheel.url,
        "hashes": {"sha256": wheel.sha256},
        "size": wheel.size,
    }
    if wheel.requires_python is not None:
        item["requires-python"] = wheel.requires_python
    if wheel.metadata_sha256 is not None:
        item["core-metadata"] = {"sha256": wheel.metadata_sha256}
    return item


def _html_attributes(wheel: IndexedWheel) -> dict[str, str]:
    attributes = {"href": f"{wheel.url}#sha256={wheel.sha256}"}
    if wheel.requires_python is not None:
        attributes["data-requires-python"] = wheel.requires_python
    if wheel.metadata_sha256 is not None:
        attributes["data-core-metadata"] = f"sha256={wheel.metadata_sha256}"
    return attributes


def _anchor(attributes: Mapping[str, str], text: str) -> str:
    written = " ".join(f'{name}="{html.escape(value)}"' for name, value in attributes.items())
    return f"<a {written}>{html.escape(text)}</a><br>"


def _html(title: str, anchors: list[str]) -> bytes:
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta name="pypi:repository-version" content="{API_VERSION}">',
        f"<title>{html.escape(title)}</title>",
        "</head>",
        "<body>",
        f"<h1>{html.escape(title)}</h1>",
        *anchors,
        "</body>",
        "</html>",
    ]
    return ("\n".join(lines) + "\n").encode()


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


class _AnchorReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.anchors: list[tuple[dict[str, str], str]] = []
        self._attributes: dict[str, str] | None = None
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self._attributes = {name: value or "" for name, value in attrs}
            self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._attributes is not None:
            self.anchors.append((self._attributes, self._text))
            self._attributes = None


def _anchors(page: bytes) -> list[tuple[dict[str, str], str]]:
    try:
        text = page.decode()
    except UnicodeDecodeError as err:
        raise PageError(f"expected UTF-8, got {err}") from err
    if not text.rstrip().endswith("</html>"):
        raise PageError("expected a whole HTML document, got one that does not end in </html>")
    reader = _AnchorReader()
    try:
        reader.feed(text)
        reader.close()
    except AssertionError as err:  # how html.parser reports an unknown marked section
        raise PageError(f"expected HTML, got {err}") from err
    return reader.anchors


def _load(page: bytes) -> Any:
    try:
        document = json.loads(page)
    except (ValueError, RecursionError) as err:
        raise PageError(f"expected JSON, got {err}") from err
    version = _get(_get(document, "meta", dict), "api-version", str)
    if version.partition(".")[0] != "1":
        raise PageError(f"meta.api-version: expected 1.x, got {version!r}")
    return document


def _get(document: Any, key: str, kind: type) -> Any:
    value = document.get(key) if isinstance(document, dict) else None
    if not isinstance(value, kind):
        raise PageError(f"{key}: expected {kind.__name__}, got {value!r}")
    return value


def _read_json_file(item: Any) -> IndexedWheel:
    size = _get(item, "size", int)
    core_metadata = _get(item, "core-metadata", dict) if "core-metadata" in item else None
    return IndexedWheel(
        filename=_wheel_name(_get(item, "filename", str)),
        url=_get(item, "url", str),
        sha256=_sha256(_get(_get(item, "hashes", dict), "sha256", str)),
        size=size,
        requires_python=_get(item, "requires-python", str) if "requires-python" in item else None,
        metadata_sha256=None if core_metadata is None else _sha256(_get(core_metadata, "sha256", str)),
    )


def _read_anchor(attributes: dict[str, str], text: str) -> IndexedWheel:
    url, fragment = urldefrag(attributes.get("href", ""))
    core_metadata = attributes.get("data-core-metadata")
    return IndexedWheel(
        filename=_wheel_name(text),
        url=url,
        sha256=_sha256(fragment.removeprefix("sha256=")),
        size=None,
        requires_python=attributes.get("data-requires-python"),
        metadata_sha256=None if core_metadata is None else _sha256(core_metadata.removeprefix("sha256=")),
    )


def _wheel_name(name: str) -> str:
    try:
        parse_wheel_filename(name)
    except ValueError as err:
        raise PageError(f"expected the file name of a wheel, got {name!r}") from err
    return name


def _project_name(name: str) -> str:
    if not name or canonicalize_name(name) != name or "/" in name:
        raise PageError(f"expected a normalized project name, got {name!r}")
    return name


def _sha256(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise PageError(f"expected a sha256 in hexadecimal, got {value!r}")
    return value
