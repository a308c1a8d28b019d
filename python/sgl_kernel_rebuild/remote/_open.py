"""A wheel of a package index as an archive: nothing is fetched but what is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sgl_kernel_rebuild.errors import BinaryError
from sgl_kernel_rebuild.wheel.archive import DAMAGE, Wheel, adopt

from ._index import _TIMEOUT, RemoteWheel, _extra_is_missing, make_session

__all__ = ["open_remote"]


@contextlib.contextmanager
def open_remote(wheel: RemoteWheel, *, on_read: Callable[[int], None] | None = None) -> Iterator[Wheel]:
    """Open a wheel of the index by HTTP ranges, after the checks that a local one passes.

    A member is streamed through a temporary file when it is read, its size and checksum verified; one whose
    connection breaks is fetched again. ``on_read`` is told the bytes unpacked so far, piece by piece.

    Raises:
        BinaryError: the server has no ranges, the size is not what the index says, the wheel is refused.
    """
    try:
        from remotezip import RemoteZip, RemoteZipError
        from urllib3.exceptions import HTTPError
    except ImportError as err:
        raise _extra_is_missing(err) from err
    try:
        archive = RemoteZip(
            wheel.url, session=make_session(), headers={"Accept-Encoding": "identity"}, timeout=_TIMEOUT
        )
    except (RemoteZipError, *DAMAGE) as err:
        raise BinaryError(
            f"index: {wheel.filename}: expected a wheel read by HTTP ranges, got {type(err).__name__}\n"
            "Try again, or download it and audit the file."
        ) from err
    with archive:
        size = archive.size()
        if wheel.size is not None and size != wheel.size:
            raise BinaryError(
                f"index: {wheel.filename}: expected {wheel.size} bytes as the index says, got {size}\nTry"
                f" again."
            )
        yield adopt(
            archive, Path(wheel.filename), size, remote_errors=(RemoteZipError, HTTPError), on_read=on_read
        )
