"""``sgl-kernel-rebuild index serve``: an index over HTTP, for this machine only."""

from __future__ import annotations

import signal
from pathlib import Path

import click

__all__ = ["serve"]


@click.command(epilog="Example: sgl-kernel-rebuild index serve wheelhouse --port 8080")
@click.argument(
    "directory",
    metavar="[DIR]",
    default="wheelhouse",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free port."
)
def serve(directory: Path, port: int) -> None:
    """Serve an index to this machine until interrupted.

    DIR is the index directory, wheelhouse where none is given. Clients that ask for JSON get
    JSON (PEP 691), all others HTML.
    """
    from sgl_kernel_rebuild import index

    with index.make_server(directory, port) as server:
        url = f"http://{server.server_name}:{server.server_port}/simple/"
        click.echo(f"Serving {directory} at {url} (Ctrl-C ends it)")
        click.echo(f"Install with: pip install --index-url {url} PROJECT")
        # A shell starts background jobs with SIGINT ignored, a service manager sends SIGTERM: both end it.
        for end in (signal.SIGINT, signal.SIGTERM):
            signal.signal(end, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("")
