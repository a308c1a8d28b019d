"""``sgl-kernel-rebuild image``: the SGLang image with our wheel."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click

__all__ = ["image"]


@click.group(epilog="Example: sgl-kernel-rebuild image build --torch-index URL")
def image() -> None:
    """The container image: SGLang, torch 2.7.0 and this wheel."""


@image.command(epilog="Example: sgl-kernel-rebuild image build --torch-index URL --max-jobs 4")
@click.option("--tag", default="sglang:rtx5090-source", show_default=True)
@click.option("--base", help="Base image; CUDA 12.8 on Ubuntu 22.04 by default.")
@click.option(
    "--torch",
    type=click.Choice(("cu128", "cu126")),
    default="cu128",
    show_default=True,
    help="CUDA of torch; only cu128 has code for the RTX 50 series, only cu126 is on PyPI.",
)
@click.option("--torch-index", metavar="URL", help="Index that has torch for CUDA 12.8.")
@click.option(
    "--wheelhouse",
    default="wheelhouse",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the wheels; inside the checkout.",
)
@click.option("--ca", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CA certificate.")
@click.option(
    "--pip-config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="pip.conf of a mirror."
)
@click.option("--max-jobs", type=click.IntRange(1), envvar="MAX_JOBS", help="Parallel compilations.")
@click.option("--engine", type=click.Choice(("docker", "podman")), help="By default the one installed.")
@click.option("--dry-run", is_flag=True, help="Print what would be run.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def build(
    tag: str,
    base: str | None,
    torch: str,
    torch_index: str | None,
    wheelhouse: Path,
    ca: Path | None,
    pip_config: Path | None,
    max_jobs: int | None,
    engine: str | None,
    dry_run: bool,
    options: tuple[str, ...],
) -> None:
    """Build the image from a checkout and its wheelhouse.

    A certificate and a pip.conf go in as secrets: they are in no layer. Proxies come from the environment.
    What follows -- goes to the engine.
    """
    from packaging.utils import parse_wheel_filename

    from sgl_kernel_rebuild.deploy import container
    from sgl_kernel_rebuild.errors import HostError
    from sgl_kernel_rebuild.toolchain._files import sha256

    if torch != "cu126" and not (torch_index or pip_config):
        raise HostError(
            "image: torch 2.7.0+cu128 is not on PyPI: expected the index that has it, got none\n"
            "Name it with --torch-index URL (PyTorch's installation page has it, under CUDA 12.8), or with"
            " --pip-config; a GPU before the RTX 50 series needs none: --torch cu126."
        )
    folder = container.find_folder()
    engine = container.find_engine(engine, is_needed=not dry_run)
    wheels = sorted(wheelhouse.glob("sgl_kernel-*.whl"), key=lambda path: parse_wheel_filename(path.name)[1])
    if not wheels:
        raise HostError(f"image: expected a wheel in {wheelhouse}, got none\nBuild it with: nox -s wheel")
    try:
        inside = wheelhouse.resolve().relative_to(folder.parent)
    except ValueError as err:
        raise HostError(f"image: wheelhouse: expected a folder of {folder.parent}, got {wheelhouse}") from err
    arguments = {"WHEELHOUSE": inside.as_posix(), "TORCH_CUDA": torch}
    if base:
        arguments["BASE_IMAGE"] = base
    if torch_index:
        arguments["TORCH_INDEX"] = torch_index
    if max_jobs:
        arguments["MAX_JOBS"] = str(max_jobs)
    secrets = {name: path.resolve() for name, path in (("ca", ca), ("pip", pip_config)) if path}
    command = container.build_command(
        engine,
        folder,
        tag=tag,
        arguments=arguments,
        secrets=secrets,
        labels={
            "io.github.sgl-kernel-rebuild.wheel": wheels[-1].name,
            "io.github.sgl-kernel-rebuild.wheel.sha256": sha256(wheels[-1].read_bytes()),
        },
        environment=os.environ,
        options=options,
    )
    click.echo(f"$ {shlex.join(command)}")
    if not dry_run:
        sys.exit(subprocess.run(command, check=False).returncode)
