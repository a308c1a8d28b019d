"""Serves an index on the loopback interface, with the content types of PEP 691.

A plain ``python -m http.server`` in the directory serves the HTML pages as well; this server also
gives JSON to clients that ask for it. It is for trying an index out, not for the open network.
"""

from __future__ import annotations

import os
import socketserver
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from sgl_kernel_rebuild.errors import HostError, PublishError
from sgl_kernel_rebuild.index._pages import HTML_PAGE, JSON_PAGE
from sgl_kernel_rebuild.index._store import SIMPLE

__all__ = ["LOOPBACK", "make_server", "negotiate"]

LOOPBACK = "127.0.0.1"

_HTML = "application/vnd.pypi.simple.v1+html"
_JSON = "application/vnd.pypi.simple.v1+json"
# What a client may ask for → what it gets, our preference first. "latest" is answered by the version
# it means; a client that takes anything is a browser or an old tool, and gets HTML.
_OFFERS = {
    _JSON: (JSON_PAGE, _JSON),
    "application/vnd.pypi.simple.latest+json": (JSON_PAGE, _JSON),
    _HTML: (HTML_PAGE, _HTML),
    "application/vnd.pypi.simple.latest+html": (HTML_PAGE, _HTML),
    "text/html": (HTML_PAGE, "text/html; charset=utf-8"),
    "text/*": (HTML_PAGE, "text/html; charset=utf-8"),
    "*/*": (HTML_PAGE, "text/html; charset=utf-8"),
}


def make_server(index: Path, port: int = 0, *, is_quiet: bool = False) -> ThreadingHTTPServer:
    """A server of ``index`` bound to 127.0.0.1; port 0 takes a free one (``server.server_port``).

    The caller runs ``serve_forever()`` and closes it. Raises PublishError where there is no index and
    HostError where the port is taken.
    """
    if not (index / SIMPLE / HTML_PAGE).is_file():
        raise PublishError(
            f"serve: {index}: expected an index, found no {SIMPLE}/{HTML_PAGE}\nPublish a wheel there first."
        )
    handler = partial(_QuietHandler if is_quiet else _Handler, directory=os.fspath(index))
    try:
        return _Server((LOOPBACK, port), handler)
    except (OSError, OverflowError) as err:
        raise HostError(
            f"serve: {LOOPBACK}:{port}: expected a free port, got {err}\nChoose another one, or 0 for any."
        ) from err


def negotiate(accept: str | None) -> tuple[str, str] | None:
    """The page file and the content type for an Accept header (RFC 9110, 12.5.1); None: not acceptable."""
    wanted: dict[str, float] = {}
    for part in (accept or "*/*").split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        wanted[media] = _quality(parameters)
    best = max(_OFFERS, key=lambda media: wanted.get(media, 0.0))
    return _OFFERS[best] if wanted.get(best, 0.0) > 0 else None


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


class _Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        # HTTPServer would look its own name up, which takes seconds where name service does not answer.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]


class _Handler(SimpleHTTPRequestHandler):
    timeout = 30  # seconds without a byte after which a silent client is let go
    server_version = "sgl-kernel-rebuild"

    _page_type: str | None = None

    def send_head(self) -> BytesIO | BinaryIO | None:
        path = Path(self.translate_path(self.path))
        parts = path.relative_to(self.directory).parts
        if any(part.startswith(".") for part in parts):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        url = urlsplit(self.path).path
        if parts[:1] == (SIMPLE,) and url.endswith("/") and path.is_dir():
            choice = negotiate(self.headers.get("Accept"))
            if choice is None:
                self.send_error(HTTPStatus.NOT_ACCEPTABLE, explain=f"This index offers: {', '.join(_OFFERS)}")
                return None
            name, self._page_type = choice
            self.path = f"{url}{name}"
        return super().send_head()

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        return self._page_type or super().guess_type(path)

    def end_headers(self) -> None:
        if self._page_type is not None:
            self.send_header("Vary", "Accept")
        super().end_headers()


class _QuietHandler(_Handler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
