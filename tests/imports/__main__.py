"""``python -m tests.imports [REQUIREMENT...] --output FILE``: record what audits and imports say."""

from __future__ import annotations

import argparse
import importlib.metadata
import tempfile
from pathlib import Path

from ._check import compare, write

# Ten wheels of six projects: for torch 2.7.0, for 2.13.0, for neither; with CUDA 12 and with 13.
WHEELS = (
    *("torchvision==0.22.0", "torchvision==0.28.0", "xformers==0.0.30", "fbgemm-gpu==1.2.0"),
    *("sgl-kernel==0.2.8", "sgl-kernel==0.3.7", "sgl-kernel==0.3.21", "sglang-kernel==0.4.10"),
    *("vllm==0.9.2", "vllm==0.10.2"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.imports", epilog=f"Default: {' '.join(WHEELS)}")
    parser.add_argument("requirements", nargs="*", default=WHEELS, metavar="REQUIREMENT")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--libraries", type=Path, action="append", default=[], metavar="SITE_PACKAGES")
    arguments = parser.parse_args()
    torch = importlib.metadata.version("torch")
    results = []
    for requirement in arguments.requirements:
        with tempfile.TemporaryDirectory() as folder:
            result = compare(requirement, torch, Path(folder), arguments.libraries)
        results.append(result)
        word = {True: "agrees", False: "DIFFERS", None: "cannot be told"}[result["agrees"]]
        print(f"{result['wheel']} under {torch}: {word}", flush=True)
        for item in result["objects"]:
            mark = {True: " ", False: "!", None: "?"}[item["agrees"]]
            print(f"{mark} {item['name']}: {item['verdict']}; {item['error'] or 'loads'}", flush=True)
        command = ["python -m tests.imports", *arguments.requirements]
        command += ["--libraries SITE_PACKAGES"] * len(arguments.libraries)
        write(results, " ".join(command), arguments.output)


if __name__ == "__main__":
    main()
