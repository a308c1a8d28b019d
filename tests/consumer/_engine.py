"""``python _engine.py REQUESTS ANSWERS [argument of SGLang…]``: sglang.Engine, driven through two files.

Each line appended to REQUESTS is the JSON of a call of Engine.generate; its answer becomes a line of ANSWERS.
The first line of ANSWERS says that the engine is ready.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path


def main() -> None:
    from sglang import Engine
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    parser.add_argument("requests", type=Path)
    parser.add_argument("answers", type=Path)
    ServerArgs.add_cli_args(parser)
    options = parser.parse_args()
    engine = Engine(server_args=ServerArgs.from_cli_args(options))
    with options.requests.open() as requests, options.answers.open("a") as answers:
        print("ready", file=answers, flush=True)
        pending = ""
        while True:
            pending += requests.readline()
            if pending.endswith("\n"):
                print(json.dumps(engine.generate(**json.loads(pending))), file=answers, flush=True)
                pending = ""
            else:
                time.sleep(0.05)


if __name__ == "__main__":  # the engine's processes import this file anew
    sys.exit(main())
