"""What a package index offers of a project, for Linux on x86-64.

The index is the one that pip is configured with; without a configuration, the default of pypi-simple.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from sgl_kernel_rebuild.errors import BinaryError, HostError

__all__ = ["RemoteWheel", "choose_wheel", "find_wheels", "make_session", "show_url"]

_TIMEOUT = (15, 60)
"""Seconds to connect, and between two packets."""
_TRIES = 4


@dataclass(frozen=True)
class RemoteWheel:
    """One wheel as the index describes it; ``size`` in bytes, None where the index does not say."""

    filename: str
    version: Version
    url: str
    size: int | None
    is_yanked: bool = False

    @property
    def tags(self) -> frozenset[Any]:
        """The wheel's tags."""
        return parse_wheel_filename(self.filename)[3]


def find_wheels(project: str, *, index_url: str | None = None) -> list[RemoteWheel]:
    """Return the wheels of ``project`` that are made for Linux on x86-64, oldest version first.

    Raises:
        BinaryError: the index has no such project, or cannot be read.
        HostError: the extra ``remote`` is not installed.
    """
    try:
        import requests
        from pypi_simple import (
            PYPI_SIMPLE_ENDPOINT,
            NoSuchProjectError,
            PyPISimple,
            UnsupportedContentTypeError,
        )
    except ImportError as err:
        raise _extra_is_missing(err) from err
    address = index_url or _configured_index() or PYPI_SIMPLE_ENDPOINT
    try:
        with PyPISimple(address, session=make_session()) as client:
            page = client.get_project_page(project, timeout=_TIMEOUT)
    except NoSuchProjectError as err:
        raise BinaryError(
            f"index: {project}: the package index has no such project\nCheck the name."
        ) from err
    except (requests.RequestException, UnsupportedContentTypeError, ValueError) as err:
        raise BinaryError(
            f"index: {project}: expected the page of the project from {show_url(address)},"
            f" got {type(err).__name__}\nCheck the network and the index that pip is configured with."
        ) from err
    found = []
    for package in page.packages:
        try:
            _, version, _, tags = parse_wheel_filename(package.filename)
        except (InvalidWheelFilename, ValueError):
            continue
        if any(_is_ours(tag.platform) for tag in tags):
            found.append(
                RemoteWheel(package.filename, version, package.url, package.size, bool(package.is_yanked))
            )
    return sorted(found, key=lambda wheel: (wheel.version, wheel.filename))


def choose_wheel(requirement: str, *, index_url: str | None = None) -> RemoteWheel:
    """Return the wheel that ``requirement`` (``sgl-kernel==0.3.7``) names: the newest version that fits it.

    Of several wheels of a version the one for this Python is taken, or else the last by name.

    Raises:
        BinaryError: the requirement cannot be read, or the index has no such wheel.
    """
    try:
        wanted = Requirement(requirement)
    except InvalidRequirement as err:
        raise BinaryError(f"index: {requirement}: expected NAME==VERSION\nCorrect the requirement.") from err
    wheels = find_wheels(wanted.name, index_url=index_url)
    fitting = [wheel for wheel in wheels if wanted.specifier.contains(wheel.version)]
    fitting = [wheel for wheel in fitting if not wheel.is_yanked] or fitting
    if not fitting:
        versions = list(dict.fromkeys(str(wheel.version) for wheel in wheels))
        known = ", ".join(versions[-8:]) or "none"
        raise BinaryError(
            f"index: {requirement}: expected a wheel for Linux on x86-64, got none; the newest versions"
            f" with one: {known}\nName one of these."
        )
    newest = fitting[-1].version
    return _for_this_python(wheel for wheel in fitting if wheel.version == newest)


def make_session() -> Any:
    """Return a requests session that tries again, with pauses, where the server is busy."""
    try:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry
    except ImportError as err:
        raise _extra_is_missing(err) from err
    session = requests.Session()
    retry = Retry(total=_TRIES, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def show_url(url: str) -> str:
    """Return ``url`` without the user name, password and query that it may carry."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _is_ours(platform: str) -> bool:
    return "linux" in platform and platform.endswith("x86_64")


def _for_this_python(wheels: Iterable[RemoteWheel]) -> RemoteWheel:
    found = list(wheels)
    for tag in sys_tags():
        for wheel in reversed(found):
            if tag in wheel.tags:
                return wheel
    return found[-1]


@functools.cache
def _configured_index() -> str | None:
    """Return the index that pip would use, from the environment or from its configuration files."""
    if address := os.environ.get("PIP_INDEX_URL"):
        return address
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _extra_is_missing(err: ImportError) -> HostError:
    return HostError(
        f"index: reading a package index needs {err.name}\nRun: pip install 'sgl-kernel-rebuild[remote]'"
    )
