"""What drives real servers on a GPU, here against the fake SGLang: the same steps, the same verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVE = Path(__file__).parents[2] / "deployment" / "drive.py"


def drive(out, *options):
    command = [sys.executable, str(DRIVE), str(out), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("state_home")
def test_every_step_is_right(tmp_path, free_port):
    done = drive(tmp_path, "--port", free_port, "--gpu-memory", "80GiB")
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads((tmp_path / "deploy.json").read_text())
    assert result["models"] == ["qwen3-32b-awq-shape"]
    assert result["plan"]["fits"]
    assert json.loads((tmp_path / "qwen3-32b-awq-shape.json").read_text())["passed"]
    assert "qwen3-32b-awq-shape is right" in done.stdout
    assert drive(tmp_path, "--draw").returncode == 0
    assert (tmp_path / "qwen3-32b-awq-shape.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("state_home")
def test_what_does_not_start_is_not_right(tmp_path, free_port):
    done = drive(tmp_path, "--port", free_port, "--gpu-memory", "1GiB")
    assert done.returncode == 1
    assert "No setting fits" in json.loads((tmp_path / "deploy.json").read_text())[0]["error"]
