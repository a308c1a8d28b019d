"""Logs its options as SGLang does, hands them to a spawned worker, then serves."""

import multiprocessing
import os
import sys

from openai_server import OpenAIServer


def _work(server_args, pipe):
    print(f"worker {server_args=}", flush=True)
    pipe.send(server_args.api_key)
    pipe.recv()


def launch_server(server_args):
    print(f"{server_args=}", flush=True)
    print(f"variable: {os.environ.get('PYTORCH_CUDA_ALLOC_CONF')}", flush=True)
    if server_args.subprocess:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        context.Process(target=_work, args=(server_args, theirs), daemon=True).start()
        assert ours.recv() == server_args.api_key
    if server_args.fail == "memory":
        raise RuntimeError("Not enough memory. Please try to increase --mem-fraction-static.")
    if server_args.fail == "silent":
        sys.exit(3)
    server = OpenAIServer(
        server_args.port,
        host=server_args.host,
        key=server_args.api_key,
        model=server_args.served_model_name,
    )
    print("The server is fired up and ready to roll!", flush=True)
    server.serve_forever()
