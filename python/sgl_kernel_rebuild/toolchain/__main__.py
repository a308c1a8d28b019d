"""``python -m sgl_kernel_rebuild.toolchain``: what the native build calls for each device file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sgl_kernel_rebuild.errors import FactoryError

from ._cache import Cache
from ._compile import compile_device, make_compiler
from ._fatbin import Image, pack
from ._files import pretty_json, write_output
from ._model import KINDS, Kind
from ._record import build_record


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code (see `sgl_kernel_rebuild.errors`)."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except FactoryError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code
    return 0


def _compile(options: argparse.Namespace) -> None:
    result = compile_device(
        options.source,
        compiler=options.compiler,
        arch=options.arch,
        kind=options.kind,
        output=options.output,
        depfile_path=options.depfile,
        report_path=options.report,
        includes=options.include,
        defines=options.define,
        source_root=options.source_root,
        nvcc=options.nvcc,
    )
    for line in result.report.diagnostics:
        print(line, file=sys.stderr)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _pack(options: argparse.Namespace) -> None:
    pack([*options.cubin, *options.ptx], options.output, compiler=options.compiler, nvcc=options.nvcc)


def _record(options: argparse.Namespace) -> None:
    record = build_record(
        options.report,
        compiler=make_compiler(options.compiler, options.nvcc).identity(),
        cxx=options.cxx,
        version=options.version,
        archs=options.archs,
        ptx=options.ptx,
        source_root=options.source_root,
    )
    write_output(options.output, pretty_json(record))


def _cache(options: argparse.Namespace) -> None:
    cache = Cache.from_environment()
    if options.clear:
        cache.clear()
    status = cache.status()
    if options.json:
        print(json.dumps(status.to_json(), indent=2))
    else:
        print(
            f"{status.directory}: {status.entries} entries, "
            f"{status.size / 2**20:.1f} MiB of at most {status.limit / 2**20:.0f} MiB"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sgl_kernel_rebuild.toolchain", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(commands, "compile", _compile, "compile one source for one architecture")
    _add_compiler(command)
    command.add_argument("--arch", required=True, help="compute capability: 80, 90a, 120, ...")
    command.add_argument("--kind", required=True, choices=KINDS, help="machine code or PTX")
    command.add_argument(
        "--include", action="append", default=[], metavar="DIR", help="header folder (repeatable)"
    )
    command.add_argument("--define", action="append", default=[], metavar="K[=V]", help="macro (repeatable)")
    command.add_argument(
        "--source-root", metavar="DIR", help="names are relative to it (default: the project's)"
    )
    command.add_argument("--output", required=True, metavar="FILE")
    command.add_argument(
        "--depfile", required=True, metavar="FILE", help="Makefile rule with the source closure"
    )
    command.add_argument("--report", required=True, metavar="FILE.json", help="resources per kernel, hashes")
    command.add_argument("source", metavar="SOURCE.cu")

    command = _add(commands, "pack", _pack, "pack cubins and PTX into a fat binary")
    _add_compiler(command)
    command.add_argument("--output", required=True, metavar="FILE.fatbin")
    for kind in KINDS:
        command.add_argument(
            f"--{kind}",
            action="extend",
            nargs="+",
            default=[],
            type=partial(_image, kind),
            metavar="ARCH=FILE",
            help=f"{kind} of an architecture",
        )

    command = _add(commands, "record", _record, "write the build record")
    _add_compiler(command)
    command.add_argument("--output", required=True, type=Path, metavar="FILE.json")
    command.add_argument(
        "--cxx", required=True, metavar="NAME VERSION", help="host compiler, such as 'g++ 12.2.0'"
    )
    command.add_argument("--version", required=True, help="version of the distribution")
    command.add_argument(
        "--archs", required=True, type=_arch_list, metavar="A;B", help="architectures with cubins"
    )
    command.add_argument("--ptx", default=[], type=_arch_list, metavar="A;B", help="architectures with PTX")
    command.add_argument("--source-root", required=True, metavar="DIR")
    command.add_argument("--report", required=True, action="extend", nargs="+", metavar="FILE.json")

    command = _add(commands, "cache", _cache, "show or clear the cache of device code")
    command.add_argument("--clear", action="store_true", help="remove every entry")
    command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], None],
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def _add_compiler(command: argparse.ArgumentParser) -> None:
    command.add_argument("--compiler", required=True, choices=("nvrtc", "nvcc"))
    command.add_argument("--nvcc", metavar="PATH", help="default: CUDACXX, CUDA_HOME, CUDA_PATH, then PATH")


def _image(kind: Kind, text: str) -> Image:
    arch, equals, path = text.partition("=")
    if not (arch and equals and path):
        raise argparse.ArgumentTypeError(f"expected ARCH=FILE, got {text!r}")
    return Image(kind, arch, path)


def _arch_list(text: str) -> list[str]:
    return [arch for arch in text.replace(",", ";").split(";") if arch]


if __name__ == "__main__":
    sys.exit(main())
