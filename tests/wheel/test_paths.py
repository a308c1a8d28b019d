"""Which of an op's paths runs can be forced."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from sgl_kernel import _paths


def test_a_path_is_forced_for_a_while() -> None:
    assert _paths.current() == 0
    with _paths.force_path("generic"):
        assert _paths.current() == _paths.NAMES.index("generic")
        with _paths.force_path("auto"):
            assert _paths.current() == 0
    assert _paths.current() == 0


def test_an_unknown_path() -> None:
    with (
        pytest.raises(ValueError, match="path: expected one of auto, generic, sm90, got fast"),
        _paths.force_path("fast"),
    ):
        pass


@pytest.mark.parametrize(("name", "printed"), [("sm90", "2"), ("fast", "")])
def test_the_environment_forces_one(name: str, printed: str) -> None:
    code = "from sgl_kernel import _paths; print(_paths.current())"
    environment = {**os.environ, "SGLK_FORCE_PATH": name}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == printed
    assert (done.returncode == 0) == bool(printed)
