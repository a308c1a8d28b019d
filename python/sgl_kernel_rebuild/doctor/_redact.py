"""Takes user names, host names, tokens and addresses out of a report that goes to strangers."""

from __future__ import annotations

import getpass
import re
import socket
from pathlib import Path
from typing import Any

__all__ = ["redact"]

_SECRETS = (
    # Tokens by their makers' prefixes, then whatever is called a secret.
    re.compile(r"\b(?:hf|ghp|gho|ghu|ghs|ghr|github_pat|glpat|sk|pypi|xox[abprs])[-_][A-Za-z0-9_-]{8,}"),
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+"),
    re.compile(r"(?i)(?<=bearer )[\w.~+/-]+=*"),
    re.compile(r"(?i)(?:(?<=key=)|(?<=token=)|(?<=secret=)|(?<=password=)|(?<=passwd=))[^\s&'\",;]+"),
)
_USER_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
_HOME = re.compile(r"(/home|/Users|/export/home)/[^/\s:'\"]+")
_ADDRESS = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_COMMON_NAMES = frozenset({"root", "user", "localhost"})
"""They tell nothing, and are parts of other words."""


def redact(value: Any) -> Any:
    """Return ``value`` (JSON types) with every string cleaned, keys included."""
    return _redact(value, _names())


def _redact(value: Any, names: tuple[tuple[str, str], ...]) -> Any:
    if isinstance(value, dict):
        return {_clean(str(key), names): _redact(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact(item, names) for item in value]
    return _clean(value, names) if isinstance(value, str) else value


def _names() -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id may have no name
        user = ""
    host = socket.gethostname()
    for name, stand_in in ((user, "<user>"), (host, "<host>"), (host.partition(".")[0], "<host>")):
        if len(name) > 1 and name not in _COMMON_NAMES:
            found.append((name, stand_in))
    return tuple(found)


def _clean(text: str, names: tuple[tuple[str, str], ...]) -> str:
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?=/|$|\W)", "~", text)
    for pattern in _SECRETS:
        text = pattern.sub("<secret>", text)
    text = _USER_IN_URL.sub("<secret>@", text)
    text = _HOME.sub(r"\1/<user>", text)
    text = _ADDRESS.sub("<address>", text)
    for name, stand_in in names:
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", stand_in, text)
    return text
