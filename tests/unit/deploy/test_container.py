"""What is said to docker and podman: a stand-in engine records it and keeps one container's state."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sgl_kernel_rebuild.deploy.state import Deployment, read_key
from sgl_kernel_rebuild.redact import make_redactor

REPOSITORY = Path(__file__).parents[3]
PROFILE = "qwen3-32b-awq-rtx5090"
NAME = "qwen3-32b-awq-source"

ENGINE = """\
#!{python}
import json, os, signal, sys
folder = {folder!r}
with open(f"{{folder}}/calls", "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
state = f"{{folder}}/state"
verb = sys.argv[1]
def killed(moment):
    try:
        wanted = open(f"{{folder}}/kill").read().split()
    except FileNotFoundError:
        return
    if wanted == [verb, moment]:
        os.remove(f"{{folder}}/kill")
        os.kill(os.getppid(), signal.SIGKILL)
killed("before")
if os.path.exists(f"{{folder}}/broken") and verb in ("run", "compose"):
    sys.exit("driver failed programming external connectivity")
if verb == "run" or "up" in sys.argv:
    open(state, "w").write("running")
elif verb == "rm" or "down" in sys.argv:
    os.remove(state)
elif verb == "container":
    if not os.path.exists(state):
        killed("after")
        sys.exit(1)
    print(json.dumps([{{"State": {{"Status": open(state).read()}}}}]))
killed("after")
if verb == "logs":
    print("Traceback (most recent call last):\\nRuntimeError: Found no NVIDIA driver on your system.")
"""


def run(*arguments, expect=0):
    command = [sys.executable, "-m", "sgl_kernel_rebuild", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture
def engine(tmp_path, monkeypatch, state_home):
    """Put a stand-in docker on the PATH; return its folder."""
    folder = tmp_path / "engine"
    (folder / "bin").mkdir(parents=True)
    path = folder / "bin" / "docker"
    path.write_text(ENGINE.format(python=sys.executable, folder=str(folder)))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    return folder


def calls(engine):
    return [json.loads(line) for line in (engine / "calls").read_text().splitlines()]


def up(model_folder, port, *options, expect=0):
    fixed = ("--model", model_folder, "--set", "load-format=dummy", "--gpu-memory", "32GiB", "--port", port)
    return run("deploy", "up", PROFILE, "--no-wait", "--engine", "docker", *fixed, *options, expect=expect)


def test_compose_gets_its_variables_and_no_key(engine, model_folder, free_port, state_home):
    up(model_folder, free_port)
    deployment = Deployment(NAME, state_home)
    call = next(call for call in calls(engine) if "up" in call)
    assert call[1:] == [
        *("compose", "--project-name", NAME, "--env-file", str(deployment.env_file)),
        *("--file", str(REPOSITORY / "deploy" / "docker-compose.sglang-source.yml"), "up", "--detach"),
    ]
    variables = dict(line.split("=", 1) for line in deployment.env_file.read_text().splitlines())
    compose = (REPOSITORY / "deploy" / "docker-compose.sglang-source.yml").read_text()
    assert all(f"${{{name}:" in compose for name in variables)
    assert variables["SGLANG_PORT"] == f"'{free_port}'"
    assert variables["SGLANG_KEY_FILE"] == f"'{deployment.key_file}'"
    document = json.loads(deployment.server_file.read_text())
    text = " ".join(document["arguments"])
    assert "--model-path /model " in text
    assert text.endswith("--host 0.0.0.0 --port 8000")
    key = deployment.key_file.read_text().strip()
    for content in (text, deployment.env_file.read_text(), (engine / "calls").read_text()):
        assert key not in content
    assert deployment.key_file.stat().st_mode & 0o077 == 0

    assert "it is there already" in up(model_folder, free_port, expect=9).stderr
    run("deploy", "down", NAME)
    assert "down" in calls(engine)[-1]
    assert not deployment.env_file.exists()


def test_a_plain_run_is_the_same_container(engine, model_folder, free_port, state_home):
    up(model_folder, free_port, "--mode", "run")
    call = next(call for call in calls(engine) if call[1] == "run")
    text = " ".join(call)
    deployment = Deployment(NAME, state_home)
    for part in (
        f"--name {NAME}",
        f"--publish 127.0.0.1:{free_port}:8000",
        f"--volume {model_folder}:/model:ro",
        f"--volume {deployment.key_file}:/run/secrets/api_key:ro",
        f"--volume {deployment.server_file}:/run/sglang/server.json:ro",
        "--cap-drop ALL --security-opt no-new-privileges",
        "--gpus all",
    ):
        assert part in text
    assert text.endswith("sglang:rtx5090-source")
    assert "--user 0:" not in text
    assert deployment.key_file.read_text().strip() not in text
    assert run("deploy", "logs", NAME).returncode == 0
    run("deploy", "down", NAME)
    assert [call[1:] for call in calls(engine)[-2:]] == [["stop", "-t", "30", NAME], ["rm", "--force", NAME]]


def test_an_engine_that_fails_is_quoted_and_nothing_stays(engine, model_folder, free_port, state_home):
    (engine / "broken").touch()
    done = up(model_folder, free_port, expect=9)
    assert "driver failed programming external connectivity" in done.stderr
    assert not Deployment(NAME, state_home).record_file.exists()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("mode", "command", "verb"),
    [
        ("run", "up", "container"),
        ("run", "up", "run"),
        ("run", "down", "stop"),
        ("run", "down", "rm"),
        ("compose", "up", "compose"),
        ("compose", "down", "compose"),
    ],
)
def test_killed_at_any_command_it_goes_on(
    engine, model_folder, free_port, state_home, mode, command, verb, moment
):
    """The command dies before or after what it runs; then down and up work as if nothing had been."""
    deployment = Deployment(NAME, state_home)
    options = ("--mode", mode)
    if command == "down":
        up(model_folder, free_port, *options)
    (engine / "kill").write_text(f"{verb} {moment}")
    if command == "up":
        up(model_folder, free_port, *options, expect=-signal.SIGKILL)
    else:
        run("deploy", "down", NAME, expect=-signal.SIGKILL)
    assert not (engine / "kill").exists()
    if deployment.record_file.exists():
        run("deploy", "down", NAME)
    assert not (engine / "state").exists()
    up(model_folder, free_port, *options)
    assert len(read_key(deployment.key_file)) == 43
    run("deploy", "down", NAME)


def test_a_dead_container_shows_its_own_error(engine, model_folder, free_port, state_home):
    fixed = ("--model", model_folder, "--set", "load-format=dummy", "--gpu-memory", "32GiB")
    state = engine / "state"
    script = (engine / "bin" / "docker").read_text().replace('write("running")', 'write("exited")')
    (engine / "bin" / "docker").write_text(script)
    done = run("deploy", "up", PROFILE, "--mode", "run", "--port", free_port, *fixed, expect=9)
    assert "Found no NVIDIA driver" in done.stderr
    assert "nvidia-smi must work there" in done.stderr
    assert state.read_text() == "exited"
    assert "exited" in run("deploy", "status", NAME, expect=9).stdout


@pytest.mark.parametrize("mode", ["compose", "run"])
def test_a_dry_run_needs_neither_engine_nor_model(mode, state_home):
    done = run("deploy", "up", PROFILE, "--mode", mode, "--engine", "docker", "--no-plan", "--dry-run")
    assert NAME in done.stdout
    assert not state_home.exists()


def test_no_engine_says_what_to_do(monkeypatch, model_folder, free_port, state_home):
    monkeypatch.setenv("PATH", "/nowhere")
    fixed = ("--model", model_folder, "--set", "load-format=dummy", "--gpu-memory", "32GiB")
    done = run("deploy", "up", PROFILE, "--port", free_port, *fixed, expect=8)
    assert "expected docker or podman on the PATH, got neither" in done.stderr


def test_the_image_is_built_from_the_wheelhouse(engine, monkeypatch, tmp_path):
    wheelhouse = REPOSITORY / "build" / "test-wheelhouse"
    wheelhouse.mkdir(parents=True, exist_ok=True)
    wheel = wheelhouse / "sgl_kernel-0.3.7+cu128.1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    authority = tmp_path / "ca.pem"
    authority.touch()
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:3128")
    try:
        run(
            "image",
            "build",
            "--wheelhouse",
            wheelhouse,
            "--ca",
            authority,
            "--max-jobs",
            3,
            "--torch-index",
            "https://index.example/cu128",
            "--engine",
            "docker",
        )
        text = " ".join(calls(engine)[-1])
    finally:
        wheel.unlink()
        wheelhouse.rmdir()
    for part in (
        "--tag sglang:rtx5090-source",
        "--build-arg WHEELHOUSE=build/test-wheelhouse",
        "--build-arg TORCH_CUDA=cu128",
        "--build-arg TORCH_INDEX=https://index.example/cu128",
        "--build-arg MAX_JOBS=3",
        "--build-arg HTTPS_PROXY ",
        f"--secret id=ca,src={authority}",
        "wheel.sha256=",
    ):
        assert part in text
    assert "user:secret" not in text


def test_torch_for_cuda_12_8_needs_its_index(engine, tmp_path):
    done = run("image", "build", "--wheelhouse", tmp_path, "--engine", "docker", expect=8)
    assert "Name it with --torch-index URL" in done.stderr


def test_without_a_wheel_no_image_is_built(engine, tmp_path):
    options = ("--torch", "cu126", "--engine", "docker")
    done = run("image", "build", "--wheelhouse", tmp_path, *options, expect=8)
    assert "Build it with: nox -s wheel" in done.stderr


def test_debug_shows_what_it_would_run_in_an_image(engine):
    done = run("debug", "--image", "sglang:rtx5090-source", "--engine", "docker", "--dry-run")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "$ docker run --rm --network none --gpus all --entrypoint '' sglang:rtx5090-source"
    )
    assert any("-m sgl_kernel_rebuild doctor --json" in line for line in lines)


def test_the_scripts_print_what_they_would_run(engine, state_home):
    path = f"{Path(sys.executable).parent}:{engine / 'bin'}:/usr/bin:/bin"
    for script, arguments, text in (
        (
            "deploy-sglang-source-rtx5090.sh",
            ["--no-plan", "--dry-run"],
            f"docker compose --project-name {NAME}",
        ),
        ("debug-sglang-build.sh", ["--dry-run"], "nvidia-smi"),
    ):
        done = subprocess.run(
            [REPOSITORY / "scripts" / script, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": path, "HOME": str(state_home), "XDG_STATE_HOME": str(state_home)},
        )
        assert done.returncode == 0, done.stderr
        assert text in done.stdout


def test_the_bundle_has_no_secret(tmp_path):
    from sgl_kernel_rebuild.deploy.debug import Finding, Place, write_bundle

    redact = make_redactor(["s" * 32], environment={}, host="box9", user="eve", home="/home/eve")
    finding = Finding("import torch", "problem", "x", None, ("python",), f"{'s' * 32} at /home/eve on box9")
    write_bundle(tmp_path / "b.tar.gz", Place.host(), [finding], None, redact)
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o077 == 0
    shown = subprocess.run(
        ["tar", "-xzOf", tmp_path / "b.tar.gz"], capture_output=True, text=True, check=True
    ).stdout
    assert "[removed] at ~ on [host]" in shown
    for secret in ("s" * 32, "eve", "box9"):
        assert secret not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["b.tar.gz"]


@pytest.mark.parametrize(
    ("output", "verdicts"),
    [
        ('{"findings": []}', ["ok"]),
        ('noise {"findings": [{"id": "a", "severity": "error", "title": "t", "fix": "f"}]}', ["problem"]),
        ('{"findings": [{"id": "a", "severity": "info", "title": "t"}]}', ["ok"]),
        ('{"findings": 3}', ["problem"]),
        ("not json", ["problem"]),
        ("Error: No such command 'doctor'.", ["absent"]),
        ("No module named sgl_kernel_rebuild", ["absent"]),
    ],
)
def test_the_doctor_s_report_is_read(output, verdicts):
    from sgl_kernel_rebuild.deploy.debug import _read_doctor

    assert [finding.verdict for finding in _read_doctor(0, output, ["doctor"])] == verdicts
