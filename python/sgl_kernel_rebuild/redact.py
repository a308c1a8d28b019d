"""Takes out of texts and documents for strangers what is secret or tells who and where."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["HIDDEN", "Redactor", "make_redactor"]

HIDDEN = "[removed]"
"""What stands in the place of a secret."""

# A name that promises a secret, then = or : (or a space after an option), then the secret.
_NAMED = re.compile(
    r"""(?ix)
    ( (?:[\w.-]*(?:api[_-]?key|[_-]key|secret|token|passw(?:or)?d|credential)s?) ["']? \s* [=:] \s* ["']?
    | \bkey=
    | --[\w-]*(?:key|token|password) (?:\s+|=) ["']?
    | \b(?:bearer|basic) \s+ )
    ( [^\s"',;&)\]}]{4,} )
    """
)
# Tokens that show by themselves what they are: the hub's, OpenAI's, GitHub's, GitLab's, PyPI's, Slack's,
# Amazon's, a JWT.
_SHAPED = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|sk-[\w-]{8,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|pypi-[\w-]{16,}|xox[abprs]-[\w-]{8,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_USERINFO = re.compile(r"(?<=://)[^/\s:@]+(?::[^/\s@]*)?@")
_HOME_OF_ANYONE = re.compile(r"(?<![\w.~])(/home|/Users|/export/home)/[^/\s:'\"\[\]]+")
_ADDRESS = re.compile(r"(?<![\d.])(?!127\.0\.0\.1|0\.0\.0\.0)(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_SECRET_NAME = re.compile(r"(?i)key|secret|token|passw|credential")
_IS_NOTHING = re.compile(r"none|null|true|false", re.IGNORECASE)
# They tell nothing, and are parts of other words.
_COMMON_NAMES = frozenset({"root", "user", "localhost"})


class Redactor:
    """Cleans a text when called, and by :meth:`document` a document of JSON types."""

    def __init__(self, exact: Mapping[str, str], *, has_addresses: bool) -> None:
        self._exact = exact
        self._has_addresses = has_addresses
        # The longest first: a home directory before the user name inside it.
        words = sorted((word for word in exact if word), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_bounded, words))) if words else None

    def __call__(self, text: str) -> str:
        if self._pattern is not None:
            text = self._pattern.sub(lambda match: self._exact[match[0]], text)
        text = _SHAPED.sub(HIDDEN, text)
        text = _USERINFO.sub(f"{HIDDEN}@", text)
        text = _HOME_OF_ANYONE.sub(r"\1/[user]", text)
        if not self._has_addresses:
            text = _ADDRESS.sub("[address]", text)
        return _NAMED.sub(_hide_value, text)

    def document(self, value: Any) -> Any:
        """Return ``value`` with every string cleaned, keys included."""
        if isinstance(value, dict):
            return {self(str(key)): self.document(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.document(item) for item in value]
        return self(value) if isinstance(value, str) else value


def make_redactor(
    secrets: Iterable[str] = (),
    *,
    has_addresses: bool = True,
    environment: Mapping[str, str] | None = None,
    host: str | None = None,
    user: str | None = None,
    home: str | None = None,
) -> Redactor:
    """Return what removes secrets and what identifies person and machine.

    Removed are ``secrets``, the values of environment variables whose names promise a secret, tokens by
    their shape, what follows ``api_key=``, ``token:``, ``Bearer`` and the like, and user names and passwords
    in URLs; host name, user name and home directories are replaced, and IPv4 addresses too, but loopback's,
    where ``has_addresses`` is False (a version of four parts looks like one). ``environment`` and what
    follows it default to this machine's.
    """
    environment = os.environ if environment is None else environment
    exact = {secret: HIDDEN for secret in map(str, secrets) if secret}
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and len(value) >= 8 and not os.path.exists(value):
            exact[value] = HIDDEN
    home = str(Path.home()) if home is None else home
    user = _user() if user is None else user
    host = socket.gethostname() if host is None else host
    if len(home) > 1:
        exact.setdefault(home, "~")
    for name, stand_in in ((user, "[user]"), (host, "[host]"), (host.partition(".")[0], "[host]")):
        if len(name) > 1 and name not in _COMMON_NAMES:
            exact.setdefault(name, stand_in)
    return Redactor(exact, has_addresses=has_addresses)


def _bounded(word: str) -> str:
    """Return a pattern for a word that is not part of a longer one."""
    return rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])"


def _hide_value(match: re.Match[str]) -> str:
    is_count = match[2].isdecimal() and "token" in match[1].lower()
    return match[0] if is_count or _IS_NOTHING.fullmatch(match[2]) else match[1] + HIDDEN


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without an entry in /etc/passwd
        return ""
