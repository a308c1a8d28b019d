"""A deployment in a real container, by podman, whole: `nox -s container` builds the image and runs this.

Needs root. What stands in for a GPU is a device of the Container Device Interface that adds nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

IMAGE = "localhost/sglk-small"
NAME = "sglk-small-test"
# podman looks for devices here; a machine with GPUs has a file of its own in /etc/cdi.
DEVICES = Path("/var/run/cdi/sglk-test.json")
DEVICE = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [{"name": "all", "containerEdits": {"env": ["SGLK_TEST_GPU=all"]}}],
}
PROFILE = f"""
[model]
id = "{{model}}"
served-name = "fake-model"
[server]
load-format = "dummy"
subprocess = true
[container]
image = "{IMAGE}"
name = "{NAME}"
shm-size = "64m"
[test]
concurrency = 2
requests = 4
"""


def run(*command, expect=0):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def cli(*arguments, expect=0):
    return run(sys.executable, "-m", "sgl_kernel_rebuild", *arguments, expect=expect)


@pytest.fixture
def profile(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    path = tmp_path / "small.toml"
    path.write_text(PROFILE.format(model=model))
    # The container's user is not the one who made the folder above.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    DEVICES.parent.mkdir(parents=True, exist_ok=True)
    DEVICES.write_text(json.dumps(DEVICE))
    yield path
    DEVICES.unlink()
    subprocess.run(["podman", "rm", "--force", NAME], capture_output=True, check=False)


def texts_of_processes():
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                yield (folder / name).read_bytes()
            except OSError:
                continue


@pytest.mark.parametrize("mode", ["compose", "run"])
def test_a_deployment_from_up_to_down(profile, tmp_path, mode):
    options = ("--mode", mode, "--engine", "podman", "--no-plan", "--timeout", 60)
    up = cli("deploy", "up", profile, *options)
    assert f"{NAME} serves fake-model at http://127.0.0.1:8000/v1" in up
    key_file = tmp_path / "state/sgl-kernel-rebuild/deployments" / NAME / "api-key"
    key = key_file.read_text().strip()
    assert (key_file.stat().st_mode & 0o777, key_file.stat().st_uid) == (0o600, 10001)

    inside = ("podman", "exec", NAME)
    assert run(*inside, "id", "-u").strip() == "10001"
    assert "SGLK_TEST_GPU=all" in run(*inside, "cat", "/proc/1/environ")
    assert "CapEff:\t0000000000000000" in run(*inside, "cat", "/proc/1/status")
    assert "NoNewPrivs:\t1" in run(*inside, "cat", "/proc/1/status")
    for path in ("/model", "/run/sglang/server.json", "/run/secrets/api_key"):
        run(*inside, "sh", "-c", f"! touch {path}/x {path} 2> /dev/null")
    run(*inside, "touch", "/cache/x")

    report = cli("test-api", NAME)
    assert "fail" not in report
    status = cli("deploy", "status", NAME)
    assert "state    running" in status
    log = cli("deploy", "logs", NAME)
    assert "api_key='[removed]'" in log
    bundle = tmp_path / "bundle.tar.gz"
    debug = cli("debug", NAME, "--bundle", bundle, expect=14)  # no torch in this image

    seen = {
        "up": up,
        "status": status,
        "report": report,
        "log": log,
        "debug": debug,
        "bundle": run("tar", "-xzOf", bundle),
        "inspect": run("podman", "inspect", NAME),
        "image": run("podman", "image", "inspect", IMAGE),
        "history": run("podman", "history", "--no-trunc", IMAGE),
    }
    assert [name for name, text in seen.items() if key in text] == []
    assert not any(key.encode() in text for text in texts_of_processes())

    assert f"{NAME} is stopped" in cli("deploy", "down", NAME)
    run("podman", "container", "exists", NAME, expect=1)
    assert key_file.read_text().strip() == key


def test_a_server_that_ends_is_shown_and_removed(profile):
    profile.write_text(profile.read_text().replace("subprocess = true", 'fail = "memory"'))
    options = ("--mode", "run", "--engine", "podman", "--no-plan", "--timeout", 60)
    text = cli("deploy", "up", profile, *options, expect=9)
    assert "Not enough memory. Please try to increase --mem-fraction-static." in text
    assert "raise mem-fraction-static" in text
    cli("deploy", "down", NAME)
    run("podman", "container", "exists", NAME, expect=1)
