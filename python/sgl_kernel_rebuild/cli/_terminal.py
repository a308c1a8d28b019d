"""How the commands write: reports to stdout, progress to a terminal's stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["make_console", "progress"]

_WIDTH_OF_A_FILE = 160


def make_console() -> Console:
    """Return a console on stdout; a report that goes into a file has a width of its own."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_A_FILE)


@contextlib.contextmanager
def progress() -> Iterator[tuple[Callable[[str, int], None], Callable[[int], None]]]:
    """Give (start, advance): a bar of bytes for each name that is started, on a terminal alone."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name, size: None, lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        current: list[TaskID] = []

        def start(name: str, size: int) -> None:
            for task in current:
                bar.remove_task(task)
            current[:] = [bar.add_task(name, total=size)]

        yield start, lambda count: bar.advance(current[0], count)
