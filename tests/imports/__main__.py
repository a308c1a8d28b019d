"""``python -m tests.imports REQUIREMENT... --output FILE``: record what audits and imports say."""

from __future__ import annotations

import argparse
import importlib.metadata
import tempfile
from pathlib import Path

from ._check import compare, write


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.imports")
    parser.add_argument("requirements", nargs="+", metavar="REQUIREMENT")
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
