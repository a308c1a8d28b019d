"""Drives `deploy` (local) and `test-api` against real SGLang servers, on a machine with a GPU.

    python -m tests.deployment.drive OUT [--model FOLDER]

One server has the shape of Qwen3-32B-AWQ, six layers of it, with dummy weights and the whole profile; the
other, if --model is given, serves that folder (the consumer tests' small model, say; made there by
``python -m tests.deployment.drive --make FOLDER``). For each, OUT gets the report of test-api as JSON and its
plot, and deploy.json the plan, the seconds to readiness, what SGLang logged of its memory, and whether the
key was seen in a command line, an environment or the log. Exits with 1 where anything is not as it should be.

Needs torch, SGLang, sgl_kernel, and the factory (PYTHONPATH=python, with click, filelock, platformdirs, rich).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROFILE = """
[model]
id = "{model}"
served-name = "{name}"
[server]
quantization = "awq_marlin"
dtype = "bfloat16"
context-length = 8192
mem-fraction-static = 0.85
max-total-tokens = 32768
kv-cache-dtype = "fp8_e5m2"
chunked-prefill-size = 2048
cuda-graph-max-bs = 8
enable-torch-compile = {compile}
torch-compile-max-bs = 2
disable-custom-all-reduce = true
attention-backend = "triton"
sampling-backend = "flashinfer"
{more}
[environment]
PYTORCH_CUDA_ALLOC_CONF = "expandable_segments:True"
[container]
name = "{name}"
port = {port}
[test]
concurrency = 8
requests = 32
max-tokens = 64
long-prompt-tokens = 4000
timeout = 120
"""
QWEN3_32B_AWQ_SIX_LAYERS = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 6,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "quantization_config": {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "modules_to_not_convert": None,
    },
}


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sgl_kernel_rebuild", *map(str, arguments)]
    print("$", " ".join(command[2:]), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stderr[-4000:], end="", flush=True)
    return done


def seen_in_processes(key: str) -> bool:
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                if key.encode() in (folder / name).read_bytes():
                    return True
            except OSError:
                continue
    return False


def drive(out: Path, work: Path, name: str, model: Path, port: int, **settings: str) -> dict[str, Any]:
    """Start, test and stop one server; return what happened."""
    profile = work / f"{name}.toml"
    profile.write_text(PROFILE.format(model=model, name=name, port=port, **settings))
    begin = time.monotonic()
    options = ("--mode", "local", "--unverified", "--json", "--timeout", 400)
    started = cli("deploy", "up", profile, *options)
    result: dict[str, Any] = {"name": name, "up": started.returncode}
    if started.returncode != 0:
        return result | {"error": started.stderr[-4000:]}
    report = json.loads(started.stdout)
    key_file = Path(report["key_file"])
    key, log = key_file.read_text().strip(), key_file.with_name("server.log")
    result |= {
        "ready_after_s": round(time.monotonic() - begin, 1),
        "models": report["models"],
        "plan": report["plan"],
        "status": cli("deploy", "status", name, "--json").returncode,
        "test_api": cli(
            *("test-api", name, "--output", out / f"{name}.json", "--plot", out / f"{name}.png")
        ).returncode,
        "is_key_seen_in_processes": seen_in_processes(key),
        "is_key_seen_in_log": key in log.read_text(errors="replace"),
    }
    text = log.read_text(errors="replace")
    result["memory_logged"] = re.findall(
        r"^.*(?:mem usage=|avail mem=|max_total_num_tokens=|KV Cache).*$", text, re.M
    )
    debug = cli("debug", name, "--host", "--json", "--bundle", out / f"{name}-debug.tar.gz")
    result["is_key_seen_in_bundle"] = (
        key
        in subprocess.run(
            ["tar", "-xzOf", out / f"{name}-debug.tar.gz"], capture_output=True, text=True, check=True
        ).stdout
    )
    if debug.stdout.startswith("{"):
        result["debug"] = json.loads(debug.stdout)["findings"]
    result["down"] = cli("deploy", "down", name).returncode
    result["is_stopped"] = cli("deploy", "status", name).returncode != 0
    return result


def is_right(result: dict[str, Any]) -> bool:
    return (
        all(result.get(step) == 0 for step in ("up", "status", "test_api", "down"))
        and not any(result[f"is_key_seen_in_{place}"] for place in ("processes", "log", "bundle"))
        and result["is_stopped"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--model", type=Path, help="a folder to serve as well")
    parser.add_argument("--make", type=Path, help="only make the consumer tests' small model in this folder")
    options = parser.parse_args()
    from tests.consumer.model import make_model, write_tokenizer

    if options.make:
        make_model(options.make)
        return 0
    out = options.out.resolve()
    work = out / "work"
    shape = work / "qwen3-32b-six-layers"
    write_tokenizer(shape)
    (shape / "config.json").write_text(json.dumps(QWEN3_32B_AWQ_SIX_LAYERS))
    dummy = {"compile": "true", "more": 'load-format = "dummy"'}
    results = [drive(out, work, "qwen3-32b-awq-shape", shape, 8000, **dummy)]
    if options.model:
        small = {"compile": "false", "more": ""}
        results.append(drive(out, work, "small-real-packed", options.model.resolve(), 8001, **small))
    (out / "deploy.json").write_text(json.dumps(results, indent=1) + "\n")
    for result in results:
        print(result["name"], "is right" if is_right(result) else f"is not: {result}")
    return 0 if all(map(is_right, results)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
