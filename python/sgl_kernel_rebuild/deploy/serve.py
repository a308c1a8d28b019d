"""Starts SGLang: ``python -m sgl_kernel_rebuild.deploy.serve --server FILE --key FILE [--pid FILE]``.

The one entry of a deployment, in a container or without. SGLang takes its key by ``--api-key``, which
every user of the machine can read in the list of processes, and prints its options, the key among them,
at start. Here the key comes from a file, goes into the parsed options, and is a string that does not print.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from sgl_kernel_rebuild.deploy.secret import Secret


def main() -> None:
    parser = argparse.ArgumentParser(prog="serve", description="Start SGLang with the key from a file.")
    parser.add_argument("--server", type=Path, required=True, help="JSON: arguments and environment")
    parser.add_argument("--key", type=Path, required=True, help="file with the API key")
    parser.add_argument("--pid", type=Path, help="file to write this process's number into")
    options = parser.parse_args()

    # Process 1 of a container ignores what it does not handle, and SGLang handles it only once it listens.
    # No exception: raised during an import it may be swallowed there.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    if options.pid:
        options.pid.write_text(str(os.getpid()), encoding="ascii")
    document = json.loads(options.server.read_text(encoding="utf-8"))
    os.environ.update(document["environment"])
    key = Secret(options.key.read_text(encoding="ascii").strip())
    if not key:
        sys.exit("serve: key: expected an API key, got an empty file")

    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    server_args = prepare_server_args(document["arguments"])
    server_args.api_key = key
    try:
        launch_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
