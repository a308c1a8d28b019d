"""``publish`` and ``index`` on the command line: output, JSON, exit codes."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner
from sgl_kernel_rebuild.cli import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


def test_publish_names_the_version_of_a_local_one(run, make_wheel):
    result = run("publish", make_wheel(version="1.2+local.1"))
    assert "pip install --find-links wheelhouse demo-pkg==1.2" in result.stdout


def test_publish_and_publish_again(run, make_wheel):
    wheel = make_wheel()
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    result = run("publish", wheel)
    assert result.exit_code == 0
    assert f"published  {wheel.name}  sha256={sha256}" in result.stdout
    assert "pip install --find-links wheelhouse demo-pkg" in result.stdout
    result = run("publish", wheel, "--json", "--index", "wheelhouse")
    assert json.loads(result.stdout) == {
        "index": "wheelhouse",
        "wheels": [{"filename": wheel.name, "sha256": sha256, "size": wheel.stat().st_size, "new": False}],
    }


def test_publish_refuses_other_bytes(run, make_wheel):
    run("publish", make_wheel(code="VALUE = 1\n"))
    result = run("publish", make_wheel(code="VALUE = 2\n"))
    assert result.exit_code == 7
    assert result.stderr.startswith("error: publish: ")
    assert "published files never change" in result.stderr
    assert result.stdout == ""


def test_publish_refuses_what_is_no_wheel(run, tmp_path):
    path = tmp_path / "demo_pkg-1.0-py3-none-any.whl"
    path.write_text("<html>404</html>")
    result = run("publish", path, "--json")
    assert (result.exit_code, result.stdout) == (5, "")
    assert "expected a zip archive" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish",),
        ("publish", "nowhere.whl"),
        ("publish", "."),
        ("index", "check", "nowhere"),
        ("index", "list", "nowhere"),
        ("index", "serve", "nowhere"),
        ("index", "serve", "--port", "70000"),
        ("index", "burn"),
    ],
)
def test_wrong_usage(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


@pytest.mark.parametrize("command", ["publish", "index check", "index list", "index serve"])
def test_help_has_an_example(run, command):
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"Example: sgl-kernel-rebuild {command} " in result.stdout


def test_check(run, make_wheel, tmp_path):
    wheel = make_wheel()
    run("publish", wheel)
    assert run("index", "check").stdout == "wheelhouse: whole, 1 wheel(s)\n"
    report = json.loads(run("index", "check", "wheelhouse", "--json").stdout)
    assert report == {"index": "wheelhouse", "ok": True, "interrupted": [], "violations": []}

    (tmp_path / "wheelhouse" / wheel.name).unlink()
    result = run("index", "check", "--json")
    assert result.exit_code == 7
    report = json.loads(result.stdout)
    assert not report["ok"]
    assert [(item["path"], item["rule"]) for item in report["violations"]] == [(wheel.name, "link")]
    assert "expected a whole index, got 1 violation(s)" in result.stderr


def test_check_tells_of_an_interrupted_publication(run, make_wheel, tmp_path):
    run("publish", make_wheel())
    (tmp_path / "wheelhouse" / ".publish").mkdir()
    (tmp_path / "wheelhouse" / ".publish" / "journal.json").write_text('["new-1.0-py3-none-any.whl"]')
    result = run("index", "check")
    assert result.exit_code == 0
    assert "note: the publication of new-1.0-py3-none-any.whl is under way or was cut short" in result.stderr


def test_list(run, make_wheel):
    wheel = make_wheel(version="1.0+cu128.1", tag="py3-none-manylinux_2_28_x86_64")
    run("publish", wheel)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    table = run("index", "list").stdout
    for cell in ("demo-pkg", "1.0+cu128.1", "py3-none-manylinux_2_28_x86_64", sha256):
        assert re.search(rf"│ +{re.escape(cell)} +│", table), cell
    assert json.loads(run("index", "list", "--json").stdout) == [
        {
            "project": "demo-pkg",
            "version": "1.0+cu128.1",
            "tags": ["py3-none-manylinux_2_28_x86_64"],
            "filename": wheel.name,
            "size": wheel.stat().st_size,
            "sha256": sha256,
            "requires_python": ">=3.10,<99",
        }
    ]


def test_serve_needs_an_index(run, tmp_path):
    result = run("index", "serve", tmp_path)
    assert result.exit_code == 7
    assert "Publish a wheel there first." in result.stderr


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serve_until_interrupted(run, make_wheel, tmp_path, pytestconfig, end):
    run("publish", make_wheel())
    options = ["index", "serve", tmp_path / "wheelhouse", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "sgl_kernel_rebuild", *options],
        cwd=pytestconfig.rootpath,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = re.search(r"http://127\.0\.0\.1:\d+/simple/", line)
            assert url, line
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{url[0]}demo-pkg/", timeout=10) as response:
                assert b"demo_pkg-1.0-py3-none-any.whl" in response.read()
            process.send_signal(end)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in errors
