"""deploy without a container, whole: a fake SGLang that logs its options and serves the OpenAI API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sgl_kernel_rebuild.deploy.state import Deployment, server_pid

COMMAND = (sys.executable, "-m", "sgl_kernel_rebuild")


def run(*arguments, expect=0):
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture
def up(state_home, profile_file):
    """Start deployments; all are stopped at the end."""
    started = []

    def start(*server, options=(), expect=0, **profile):
        path = profile_file(*server, **profile)
        started.append(path.stem)
        return run("deploy", "up", path, "--mode", "local", "--gpu-memory", "40GiB", *options, expect=expect)

    yield start
    for name in started:
        pid = server_pid(state_home / name)
        if pid:
            os.killpg(pid, signal.SIGKILL)


def texts_of_processes():
    """Return command line and environment of every process, as ps shows them."""
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                yield (folder / name).read_bytes()
            except OSError:
                continue


def test_up_status_test_api_debug_down(up, state_home, tmp_path):
    result = json.loads(up("subprocess = true", options=("--json",)).stdout)
    deployment = Deployment("test-deployment", state_home)
    assert result["models"] == ["fake-model"]
    assert result["plan"]["fits"] is True
    key = deployment.key_file.read_text().strip()

    log = deployment.log_file.read_text()
    assert "server_args=ServerArgs(" in log
    assert "worker server_args=" in log
    assert "api_key='[removed]'" in log
    assert "variable: expandable_segments:True" in log
    assert key not in log
    assert not any(key.encode() in text for text in texts_of_processes())

    status = json.loads(run("deploy", "status", "--json").stdout)
    assert (status["state"], status["healthy"], status["models"]) == ("running", True, ["fake-model"])
    assert "fired up" in run("deploy", "logs", "-n", 5).stdout

    report = json.loads(run("test-api", "--json").stdout)
    assert report["passed"] is True
    assert key not in json.dumps(report)

    again = up(expect=9)
    assert "it is there already" in again.stderr
    assert deployment.key_file.read_text().strip() == key

    bundle = tmp_path / "bundle.tar.gz"
    debug = run("debug", "test-deployment", "--bundle", bundle, "--json", expect=12)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xzf", bundle, "-C", unpacked], check=True)
    names = {path.name for path in unpacked.rglob("*") if path.is_file()}
    assert {"report.json", "server.json", "deployment.json"} <= names
    assert "api-key" not in names
    texts = [debug.stdout, debug.stderr, *(p.read_text() for p in unpacked.rglob("*") if p.is_file())]
    assert not any(key in text for text in texts)
    findings = {item["name"]: item["verdict"] for item in json.loads(debug.stdout)["findings"]}
    assert findings["server log"] == "ok"
    assert findings["import sglang"] == "ok"

    assert "is stopped" in run("deploy", "down").stdout
    assert server_pid(deployment.folder) is None
    assert deployment.key_file.read_text().strip() == key
    assert "nothing is deployed" in run("deploy", "status", expect=9).stderr


def test_the_server_s_own_error_is_shown_with_advice(up):
    done = up('fail = "memory"', expect=9)
    assert "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static." in done.stderr
    assert "raise mem-fraction-static" in done.stderr


def test_a_silent_death_shows_the_end_of_the_log(up):
    done = up('fail = "silent"', expect=9)
    assert "it ended before it was ready" in done.stderr
    assert "variable: expandable_segments:True" in done.stderr


def test_what_does_not_fit_is_refused_before_anything_is_written(up, state_home):
    done = up(options=("--gpu-memory", "22GiB"), expect=9)
    assert "memory of the GPU: 22.00 GiB" in done.stdout
    assert "The nearest setting that fits: --mem-fraction-static" in done.stderr
    assert not state_home.exists()


def test_a_taken_port_is_refused(up, server, state_home):
    done = up(port=server().server_port, expect=9)
    assert "Choose another with --port" in done.stderr
    assert not Deployment("test-deployment", state_home).key_file.exists()


def test_a_dry_run_prints_and_writes_nothing(up, state_home):
    done = up(options=("--dry-run",))
    assert "-m sgl_kernel_rebuild.deploy.serve --server" in done.stdout
    assert not state_home.exists()


def test_weights_without_a_record_are_refused(up, model_folder):
    (model_folder / "model.safetensors").write_bytes(b"weights")
    options = ("--set", "load-format=auto", "--gpu-memory", "60GiB")
    done = up(options=options, expect=9)
    assert "no hash is recorded for it" in done.stderr
    up(options=(*options, "--unverified", "--no-wait"))


def test_a_killed_server_is_known_to_be_stopped(up, state_home):
    up()
    pid = server_pid(state_home / "test-deployment")
    os.kill(pid, signal.SIGKILL)
    while server_pid(state_home / "test-deployment") is not None:
        time.sleep(0.02)
    done = run("deploy", "status", expect=9)
    assert "stopped" in done.stdout
    up()


def test_a_killed_command_leaves_a_known_server(up, state_home, profile_file):
    """The command dies while it waits; the server goes on, and down stops it."""
    path = profile_file()
    started = subprocess.Popen(
        [*COMMAND, "deploy", "up", str(path), "--mode", "local", "--gpu-memory", "40GiB"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while server_pid(state_home / "test-deployment") in (None, 0) and started.poll() is None:
        time.sleep(0.02)
    started.kill()
    started.wait()
    run("deploy", "down", "test-deployment")
    assert server_pid(state_home / "test-deployment") is None


def test_two_deployments_do_not_meet(up, state_home, free_port):
    up(name="first")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    up(name="second", port=port)
    keys = {(state_home / name / "api-key").read_text() for name in ("first", "second")}
    assert len(keys) == 2
    done = run("deploy", "status", expect=9)
    assert "expected a name, there are 2: first, second" in done.stderr
    run("deploy", "down", "first")
    assert json.loads(run("deploy", "status", "second", "--json").stdout)["healthy"] is True
    run("deploy", "down", "second")
