"""``python -m sgl_kernel``: prints what this installation is, what it runs on and what it lacks."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from sgl_kernel import _plan, _report

_LABEL_WIDTH = 16
_TEXT_WIDTH = 94


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sgl_kernel", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the report, or the plan, as JSON")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--certificate", action="store_true", help="torch release, verdict, missing symbols")
    choice.add_argument("--coverage", action="store_true", help="operator, architecture, kernels")
    choice.add_argument("--sbom", action="store_true", help="the software bill of materials (CycloneDX)")
    choice.add_argument(
        "--plan",
        nargs="?",
        const=_plan.GPUS[0].name,
        metavar="GPU",
        help="what gptq_marlin_gemm would launch on it, and the roofline there; computed, not measured"
        f" ({', '.join(gpu.name for gpu in _plan.GPUS)}; default: %(const)s)",
    )
    options = parser.parse_args(arguments)
    if options.json and (options.certificate or options.coverage or options.sbom):
        parser.error("--json: not allowed with a document, which is JSON")

    if options.plan:
        try:
            found = _plan.plans(_plan.find_gpu(options.plan))
        except ValueError as err:
            parser.error(f"--plan: {err}")
        print(json.dumps(found, indent=2) if options.json else "\n".join(_plan.table(found)))
        return 0
    if options.certificate:
        return _print_document("ABI certificate", _report.document(_report.CERTIFICATE))
    if options.coverage:
        return _print_document("coverage manifest", _report.document(_report.COVERAGE))
    if options.sbom:
        return _print_document("bill of materials", _report.sbom())
    report = _report.collect()
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for label, text in _rows(report):
            lines = textwrap.wrap(text, _TEXT_WIDTH, break_long_words=False, break_on_hyphens=False)
            for number, line in enumerate(lines):
                print(f"{label if number == 0 else '':{_LABEL_WIDTH}}{line}")
    return 0


def _print_document(name: str, text: str | None) -> int:
    if text is None:
        print(f"sgl_kernel: {_absent(name)}", file=sys.stderr)
        return 1
    print(text.rstrip("\n"))
    return 0


def _absent(name: str) -> str:
    return f"no {name} in this installation: only wheels that passed the gate carry one"


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    version = report["version"] or "of no installed distribution"
    yield "sgl-kernel", f"{version}, API level {report['api_level']}"
    yield "library", report["library"]
    cuda = report["torch"]["cuda"]
    yield "torch", f"{report['torch']['version']}, {f'CUDA {cuda}' if cuda else 'without CUDA'}"
    driver = report["driver"]
    if driver is None:
        yield "driver", "none"
    else:
        yield "driver", f"{driver['release'] or 'of unknown release'}, up to CUDA {driver['cuda']}"

    for gpu in report["gpus"]:
        code = gpu["code"]
        if code is None:
            use = "no code of this build runs on it" if report["architectures"] else "code unknown"
        else:
            use = f"runs {code}" + (", compiled by the driver" if code.startswith("compute_") else "")
        yield "GPU", f"{gpu['name']}, compute capability {gpu['capability']}: {use}"
    if not report["gpus"]:
        yield "GPU", "none that torch can use"

    targets = ", ".join(report["architectures"])
    yield "architectures", targets or "unknown: no build record in this installation"
    compilers = [name for name in (report["device_compiler"], report["cxx_compiler"]) if name]
    if compilers:
        yield "compilers", ", ".join(compilers)
    yield from _abi_rows(report["abi"])
    if report["has_coverage"]:
        yield "coverage", "python -m sgl_kernel --coverage"
    else:
        yield "coverage", _absent("coverage manifest")

    yield "not provided", f"{len(report['missing'])} names of the API"
    by_module: dict[str, list[str]] = {}
    for name in report["missing"]:
        _, module, function = name.split(".", 2)
        by_module.setdefault(module, []).append(function)
    for module, functions in by_module.items():
        yield "", f"{module}: {', '.join(functions)}"


def _abi_rows(releases: list[dict[str, Any]] | None) -> Iterator[tuple[str, str]]:
    if not releases:
        yield "torch ABI", _absent("ABI certificate")
        return
    fitting = [release["torch"] for release in releases if release["verdict"] == "fits"]
    others = [
        f"{release['torch']} ({release['missing']} symbols missing)"
        for release in releases
        if release["verdict"] != "fits"
    ]
    yield "torch ABI", f"fits {', '.join(fitting) or 'no release'}"
    if others:
        yield "", f"does not fit {', '.join(others)}"


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly where the reader does: python -m ... | head
    sys.exit(main())
