"""``python -m benchmarks.run OUT_DIR``: time the families, write one JSON each, then the report.

--family NAME      such as norm; several times for several (default: all)
--quick            the cases of the baseline alone, three replays each
--no-compile       without torch.compile among the peers
--peer-path DIR    also time the sgl_kernel installed in DIR (pip install --target), in a process of its own
--json             print a line of JSON for each case
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import report
from ._results import SUBJECT, FamilyRun, ResultError, Row, Timing, load_runs, save_run

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["main"]

FAMILIES = ("norm", "activation", "rope", "marlin_gemm", "awq", "sampling", "merge", "moe")
PEER = "peer sgl_kernel"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        has_failed = run(options)
    except ResultError as err:
        print(f"error: {err}", file=sys.stderr)
        return 8
    if has_failed:
        print("error: some timings of sgl_kernel failed; the lines above say which", file=sys.stderr)
    return int(has_failed)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description="Time every op on this GPU."
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder of the results, made if absent")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="default: all of them")
    parser.add_argument("--quick", action="store_true", help="the cases of the baseline alone, three replays")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out of the peers")
    parser.add_argument(
        "--peer-path", type=Path, metavar="DIR", help="folder of another installed sgl_kernel"
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each case")
    parser.add_argument("--baseline", type=Path, default=report.BASELINE, help="figures to compare with")
    # For the process that times a peer: no peers of its own, no copy rate, no report.
    parser.add_argument("--only-package", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.command = " ".join(("python -m benchmarks.run OUT_DIR", *option_words(options)))
    return options


def option_words(options: argparse.Namespace) -> list[str]:
    """The options that shape the figures, without any path."""
    words = [f"--family {name}" for name in options.family or ()]
    words += ["--quick"] * options.quick + ["--no-compile"] * options.no_compile
    return words + ["--peer-path DIR"] * (options.peer_path is not None)


def run(options: argparse.Namespace) -> bool:
    """Times, writes and reports; returns whether a timing of the subject failed."""
    import torch  # after the arguments: --help needs no torch

    if not torch.cuda.is_available():
        raise ResultError(
            f"benchmarks need a CUDA device: torch {torch.__version__} sees none\n"
            "Run them on a machine with an NVIDIA GPU and a torch built for CUDA."
        )
    from . import _bench

    check_package_folders(options)
    modules = [importlib.import_module(f"{__package__}.bench_{family}") for family in FAMILIES]
    options.out_dir.mkdir(parents=True, exist_ok=True)
    ceiling = (0.0, "") if options.only_package is not None else _bench.copy_ceiling(replays(options))
    has_failed = False
    for module in modules:
        if module.FAMILY in (options.family or FAMILIES):
            result = time_family(module, ceiling, options)
            has_failed |= any(row.time(SUBJECT) is None for row in result.rows)
            save_run(result, options.out_dir)
            if options.peer_path is not None:
                save_run(with_peer(result, options), options.out_dir)
    if options.only_package is None:
        report.write(options.out_dir, options.baseline)
    return has_failed


def check_package_folders(options: argparse.Namespace) -> None:
    """The peer exists, and in the process that times it, it is what ``import sgl_kernel`` finds."""
    import sgl_kernel

    if options.peer_path is not None and not (options.peer_path / "sgl_kernel").is_dir():
        raise ResultError(
            f"benchmarks: --peer-path {options.peer_path}: expected a folder with sgl_kernel, got none\n"
            "Fill one: pip install --no-deps --target DIR WHEEL"
        )
    found = Path(str(sgl_kernel.__file__)).resolve()
    if options.only_package is not None and options.only_package not in found.parents:
        raise ResultError(
            f"benchmarks: {options.only_package}: expected its sgl_kernel to be imported, got {found}\n"
            "Start Python without a sgl_kernel in the current folder."
        )


def replays(options: argparse.Namespace) -> int:
    return 3 if options.quick else 7


def time_family(module: Any, ceiling: tuple[float, str], options: argparse.Namespace) -> FamilyRun:
    import sgl_kernel
    import torch

    from ._bench import run_case

    rows = []
    for case in module.cases():
        if case.is_core or not options.quick:
            is_alone = options.only_package is not None
            row = run_case(case, replays(options), is_alone, not options.no_compile)
            show(options, module.FAMILY, row)
            rows.append(row)
    peers = {
        "torch eager": f"torch {torch.__version__}",
        "torch.compile": f"torch {torch.__version__}, inductor, static shapes",
    }
    timed = {name for row in rows for name in row.times}
    return FamilyRun(
        family=module.FAMILY,
        rows=rows,
        machine=describe_machine(),
        package=describe_package(sgl_kernel),
        peers={name: what for name, what in peers.items() if name in timed},
        ceiling_gbps=round(ceiling[0], 1),
        ceiling_how=ceiling[1],
        command=options.command,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def show(options: argparse.Namespace, family: str, row: Row) -> None:
    if options.json:
        print(json.dumps({"family": family, **row.as_json()}), flush=True)
        return
    figures = [
        f"{name} {timing.error}" if timing.error else f"{name} {timing.us:.3f} µs"
        for name, timing in row.times.items()
    ]
    rate = row.gbps()
    print(f"{family:10}  {row.case:34}  {rate or 0:7.1f} GB/s  {', '.join(figures)}", flush=True)


def with_peer(result: FamilyRun, options: argparse.Namespace) -> FamilyRun:
    """The same cases timed in a new process whose sgl_kernel is the one in ``peer_path``."""
    folder = options.peer_path.resolve()
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as temporary:
        words = ["--only-package", str(folder), "--family", result.family, *["--quick"] * options.quick]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.run", temporary, *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.DEVNULL,
            check=False,  # a case that the peer cannot do is part of its rows
        )
        (peer,) = load_runs(Path(temporary))
    return merge(result, peer)


def merge(result: FamilyRun, peer: FamilyRun) -> FamilyRun:
    """Adds the peer's own timings to the rows of the same case."""
    theirs: dict[str, Timing] = {row.case: row.times[SUBJECT] for row in peer.rows}
    rows = [
        Row(row.case, row.bytes, {**row.times, **({PEER: theirs[row.case]} if row.case in theirs else {})})
        for row in result.rows
    ]
    named = {**result.peers, PEER: report.describe_package(peer)}
    return dataclasses.replace(result, rows=rows, peers=named)


def describe_machine() -> dict[str, str]:
    import torch

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        lines = []
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": lines[0] if lines else "unknown",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    }


def describe_package(package: ModuleType) -> dict[str, Any]:
    """Its version and the hashes of its libraries; no path, which would say nothing elsewhere."""
    folder = Path(str(package.__file__)).parent
    libraries = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.so"))
    }
    try:
        version = importlib.metadata.version("sgl-kernel")
    except importlib.metadata.PackageNotFoundError:
        version = str(getattr(package, "__version__", "unknown"))
    return {"version": version, "libraries": libraries}


if __name__ == "__main__":
    sys.exit(main())
