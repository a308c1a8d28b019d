"""Waiting until a server answers, or until it is clear that it will not."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from sgl_kernel_rebuild.deploy import log
from sgl_kernel_rebuild.errors import DeployError

__all__ = ["is_healthy", "served_models", "wait_until_ready"]

_POLL = 0.5
_ANSWER = 10.0
_LINES = 400

# Straight to the server: a proxy of the environment has nothing to do with 127.0.0.1.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_healthy(url: str) -> bool:
    """Say whether ``/health`` answers 200; SGLang's asks for no key."""
    try:
        with _OPENER.open(f"{url}/health", timeout=_ANSWER) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def served_models(url: str, key: str) -> list[str]:
    """Return the names under ``/v1/models``.

    Raises:
        DeployError: the answer is no such list.
    """
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with _OPENER.open(request, timeout=_ANSWER) as answer:
            return [str(model["id"]) for model in json.load(answer)["data"]]
    except urllib.error.HTTPError as err:
        raise DeployError(f"server: /v1/models: expected 200 with this key, got {err.code}") from err
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as err:
        raise DeployError(f"server: /v1/models: expected a list of models, got {err!r}") from err


def wait_until_ready(
    url: str,
    key: str,
    *,
    is_alive: Callable[[], bool],
    tail: Callable[[int], str],
    progress: Callable[[float, str], None],
    timeout: float,
) -> list[str]:
    """Wait until the server is healthy and lists its models; return their names.

    ``tail(n)`` returns the last n lines of its log, ``progress(seconds, line)`` gets the last one.

    Raises:
        DeployError: the server ended, with its own error, or was not ready in ``timeout`` seconds.
    """
    begin = time.monotonic()
    while not is_healthy(url):
        waited = time.monotonic() - begin
        if not is_alive():
            error = log.server_error(tail(_LINES))
            advice = log.explain(error) or "The whole log: sgl-kernel-rebuild deploy logs"
            raise DeployError(f"server: it ended before it was ready:\n{error}\n{advice}")
        if waited > timeout:
            raise DeployError(
                f"server: expected readiness within {timeout:g} s; it is still starting and goes on.\n"
                f"Its last line: {tail(1).strip()}\n"
                "Watch it with: sgl-kernel-rebuild deploy logs"
            )
        progress(waited, tail(1).strip())
        time.sleep(_POLL)
    return served_models(url, key)
