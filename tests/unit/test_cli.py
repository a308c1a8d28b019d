"""The command line's entry: exit codes, messages on stderr, a quick start."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from sgl_kernel_rebuild import __version__, errors
from sgl_kernel_rebuild.cli import main

EXIT_CODES = {
    "FactoryError": 1,
    "ToolchainError": 3,
    "CompileError": 4,
    "BinaryError": 5,
    "GateError": 6,
    "PublishError": 7,
    "HostError": 8,
    "DeployError": 9,
}


@pytest.fixture
def failing(monkeypatch):
    """Add a subcommand, in a group as deep as any, that raises what it is given."""

    def add(error: BaseException) -> None:
        @click.group()
        def deep() -> None: ...

        @deep.command()
        def fail() -> None:
            raise error

        monkeypatch.setitem(main.commands, "deep", deep)

    return add


def test_every_error_class_has_its_own_exit_code():
    assert {name: getattr(errors, name).exit_code for name in errors.__all__} == EXIT_CODES


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_becomes_its_message_and_exit_code(failing, name):
    failing(getattr(errors, name)("wheel: x.whl: expected a, got b\nBuild it again."))
    result = CliRunner().invoke(main, ["deep", "fail"])
    assert result.exit_code == EXIT_CODES[name]
    assert result.stderr == "error: wheel: x.whl: expected a, got b\nBuild it again.\n"
    assert result.stdout == ""


def test_a_fault_of_ours_is_not_dressed_up(failing):
    failing(ZeroDivisionError("ours"))
    assert isinstance(CliRunner().invoke(main, ["deep", "fail"]).exception, ZeroDivisionError)


def test_an_interrupt_ends_without_a_traceback(failing):
    failing(KeyboardInterrupt())
    result = CliRunner().invoke(main, ["deep", "fail"])
    assert result.exit_code == 1
    assert result.stderr.strip() == "Aborted!"


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["publish", "--nonsense"]])
def test_wrong_usage(arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert "Error: No such" in result.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option):
    result = CliRunner().invoke(main, [option])
    assert result.exit_code == 0
    for name in main.commands:
        assert f"  {name} " in result.stdout
    for name, command in main.commands.items():
        assert command.help, name


def test_version():
    assert CliRunner().invoke(main, ["--version"]).stdout == f"sgl-kernel-rebuild, version {__version__}\n"


def test_runs_as_a_module_without_a_traceback():
    result = subprocess.run(
        [sys.executable, "-m", "sgl_kernel_rebuild", "index", "list", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_the_start_loads_nothing_heavy():
    """--help is instant because subcommands import what they need when they run."""
    heavy = ["auditwheel", "cuda", "cyclonedx", "elftools", "filelock", "http.server", "jinja2", "requests"]
    heavy += ["rich", "torch"]
    code = f"import sys, sgl_kernel_rebuild.cli\nprint([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
