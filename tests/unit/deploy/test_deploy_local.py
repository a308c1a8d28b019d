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
from sgl_kernel_rebuild.deploy.state import Deployment, read_key, server_pid

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
        pid = server_pid(Deployment(name, state_home))
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
    debug = run("debug", "test-deployment", "--bundle", bundle, "--json", expect=14)
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
    assert server_pid(deployment) is None
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
    pid = server_pid(Deployment("test-deployment", state_home))
    os.kill(pid, signal.SIGKILL)
    while server_pid(Deployment("test-deployment", state_home)) is not None:
        time.sleep(0.02)
    done = run("deploy", "status", expect=9)
    assert "stopped" in done.stdout
    up()


# The command, killed at the system call whose number is given.
_VICTIM = """
import os, signal, subprocess, sys
from pathlib import Path
from sgl_kernel_rebuild.cli import main
from sgl_kernel_rebuild.deploy import service
left = int(sys.argv.pop(1))
def counted(call):
    def wrapper(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapper
for name in ("open", "fsync", "mkdir"):
    setattr(os, name, counted(getattr(os, name)))
Path.replace = counted(Path.replace)
subprocess.Popen.__init__ = counted(subprocess.Popen.__init__)
os.close = counted(os.close)
main()
"""


def test_killed_at_any_point_down_and_up_work(up, state_home, profile_file):
    """No file is half written, no server is left that is not known."""
    deployment = Deployment("test-deployment", state_home)
    arguments = ["deploy", "up", profile_file(), "--mode", "local", "--gpu-memory", "40GiB"]
    for point in range(100):
        command = [sys.executable, "-c", _VICTIM, point, *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if deployment.key_file.exists():
            assert len(read_key(deployment.key_file)) == 43
        if deployment.record_file.exists():
            assert json.loads(deployment.server_file.read_text())["arguments"]
            run("deploy", "down", "test-deployment")
        assert server_pid(deployment) is None
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert 15 < point < 99
    up()


def test_of_two_commands_at_once_one_starts_it(up, state_home, profile_file):
    command = [*COMMAND, "deploy", "up", str(profile_file()), "--mode", "local", "--gpu-memory", "40GiB"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in both]
    assert sorted(process.returncode for process in both) == [0, 9]
    assert "it is there already" in "".join(errors)
    assert json.loads(run("deploy", "status", "--json").stdout)["healthy"] is True
    assert "is stopped" in run("deploy", "down").stdout


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
