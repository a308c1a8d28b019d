"""Keeping secrets out of what people read: a string that does not print, and a cleaner of texts."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["Secret", "make_redactor"]

_HIDDEN = "[removed]"

# A name that promises a secret, then = or : (or a space after an option), then the secret.
_NAMED = re.compile(
    r"""(?ix)
    ( (?:[\w.-]*(?:api[_-]?key|secret|token|passw(?:or)?d|credential)s?) ["']? \s* [=:] \s* ["']?
    | --[\w-]*(?:key|token|password) (?:\s+|=) ["']?
    | \b(?:bearer|basic) \s+ )
    ( [^\s"',;)\]}]{4,} )
    """
)
# Tokens that show by themselves what they are: the hub's, OpenAI's, GitHub's, GitLab's, Slack's, a JWT.
_SHAPED = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|sk-[\w-]{8,}|gh[pousr]_\w{16,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{8,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_USERINFO = re.compile(r"(?<=://)[^/\s:@]+(?::[^/\s@]*)?@")
_SECRET_NAME = re.compile(r"(?i)key|secret|token|passw|credential")
_IS_PLAIN_COUNT = re.compile(r"^(?:\d+|none|null|true|false)$", re.IGNORECASE)


class Secret(str):
    """A string whose ``repr`` hides it, as in the log line in which a server prints its options."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{_HIDDEN}'"


class _Redactor:
    def __init__(self, exact: Mapping[str, str]) -> None:
        self._exact = exact
        # The longest first: a home directory before the user name inside it.
        words = sorted((word for word in exact if word), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_bounded, words))) if words else None

    def __call__(self, text: str) -> str:
        if self._pattern is not None:
            text = self._pattern.sub(lambda match: self._exact[match[0]], text)
        text = _SHAPED.sub(_HIDDEN, text)
        text = _USERINFO.sub(f"{_HIDDEN}@", text)
        return _NAMED.sub(_hide_value, text)


def make_redactor(
    secrets: Iterable[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    host: str | None = None,
    user: str | None = None,
    home: str | None = None,
) -> _Redactor:
    """Return a function that removes secrets and what identifies person and machine from a text.

    Removed are ``secrets``, the values of environment variables whose names promise a secret, tokens by
    their shape, what follows ``api_key=``, ``token:``, ``Bearer`` and the like, and user names and passwords
    in URLs; host name, user name and home directory are replaced. The arguments after ``secrets`` default
    to this machine's.
    """
    environment = os.environ if environment is None else environment
    exact = {secret: _HIDDEN for secret in map(str, secrets) if secret}
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and len(value) >= 8 and not os.path.exists(value):
            exact[value] = _HIDDEN
    home = str(Path.home()) if home is None else home
    user = _user() if user is None else user
    host = socket.gethostname() if host is None else host
    if len(home) > 1:
        exact.setdefault(home, "~")
    if user and user != "root":
        exact.setdefault(user, "[user]")
    if host and host != "localhost":
        exact.setdefault(host, "[host]")
    return _Redactor(exact)


def _bounded(word: str) -> str:
    """Return a pattern for a word that is not part of a longer one."""
    return rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])"


def _hide_value(match: re.Match[str]) -> str:
    return match[0] if _IS_PLAIN_COUNT.match(match[2]) else match[1] + _HIDDEN


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without an entry in /etc/passwd
        return ""
