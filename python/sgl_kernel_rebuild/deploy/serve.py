"""Starts SGLang: ``python -m sgl_kernel_rebuild.deploy.serve --server FILE --key FILE [--lock FILE]``.

The one entry of a deployment, in a container or without. SGLang takes its key by ``--api-key``, which
every user of the machine can read in the list of processes, and prints its options, the key among them,
at start. Here the key comes from a file, goes into the parsed options, and is a string that does not print.

With ``--lock`` the process holds that file's lock as long as it lives and writes its number into it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import IO

from sgl_kernel_rebuild.deploy.secret import Secret


def main() -> None:
    parser = argparse.ArgumentParser(prog="serve", description="Start SGLang with the key from a file.")
    parser.add_argument("--server", type=Path, required=True, help="JSON: arguments and environment")
    parser.add_argument("--key", type=Path, required=True, help="file with the API key")
    parser.add_argument("--lock", type=Path, help="file to lock while the server lives")
    options = parser.parse_args()

    # Process 1 of a container ignores what it does not handle; SGLang's handler comes when it listens.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    held = _hold(options.lock) if options.lock else None
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
        if held is not None:
            held.close()


def _hold(path: Path) -> IO[str]:
    """Lock a file, write this process's number into it, and return it open."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="ascii")
    for _ in range(20):  # a reader of the lock holds it for an instant
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.1)
    else:
        sys.exit("serve: another server runs in this deployment")
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


if __name__ == "__main__":
    main()
