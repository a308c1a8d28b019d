"""Every subcommand has an example in its help, and a page in docs/cli that knows all its options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from sgl_kernel_rebuild.cli import main

PAGES = Path(__file__).resolve().parents[2] / "docs" / "cli"
SECTIONS = ["Name", "Synopsis", "Description", "Options", "Exit status", "Examples", "See also"]


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands(main))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_has_an_example(path):
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert f"Example: sgl-kernel-rebuild {' '.join(path)}" in result.output


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_the_page_knows_the_command(path):
    page = (PAGES / f"{path[0]}.md").read_text()
    assert page.startswith(f"# sgl-kernel-rebuild {path[0]}\n")
    command = ALL[path]
    if isinstance(command, click.Group):
        return
    # Lines that go on are indented.
    line = rf"^sgl-kernel-rebuild {' '.join(path)} .*(?:\n +.*)*"
    (synopsis,) = re.findall(line, page, re.MULTILINE)[:1]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in synopsis
            assert f"\n`{parameter.opts[0]}" in page
        else:
            name = parameter.make_metavar(click.Context(command))
            assert name in synopsis


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_the_page_is_a_manual_page(page):
    assert page.stem in main.commands
    text = page.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    assert all(len(line) <= 125 for line in text.splitlines())
