"""Drives `deploy` (local) and `test-api` against real SGLang servers, on a machine with a GPU.

    python3 tests/deployment/drive.py OUT [--model FOLDER]
    python3 tests/deployment/drive.py OUT --draw       (anywhere: the plots of the reports in OUT)

One server has the shape of Qwen3-32B-AWQ, six layers of it, dummy weights and the whole profile; the other,
with --model, serves that folder (`python3 -m tests.consumer._model FOLDER` makes a small one). OUT gets
each server's test-api report, its log without the key, and deploy.json: the plan, the seconds to readiness,
what SGLang logged of its memory, what debug found, whether the key was seen in a command line, an
environment, the log or the bundle. Exits with 1 where anything is not as it should be.

Needs torch 2.7.0, SGLang, sgl_kernel, openai and the factory. For a machine without network, here and there:

    pip install --target build/drive --python-version 3.12 --only-binary=:all: \\
        wheelhouse/sgl_kernel_rebuild-*.whl
    pip install --target build/drive --no-deps wheelhouse/sgl_kernel-*.whl
    PYTHONPATH=$PYTHONPATH:build/drive python3 tests/deployment/drive.py OUT

(18 MB as build/drive.tar.gz; it has neither torch nor SGLang nor openai in it, and its place is last.)
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

PROFILE = """
[model]
id = "{model}"
served-name = "{name}"
[server]
{weights}
dtype = "bfloat16"
context-length = 8192
mem-fraction-static = 0.85
max-total-tokens = 32768
kv-cache-dtype = "fp8_e5m2"
chunked-prefill-size = 2048
cuda-graph-max-bs = 8
disable-custom-all-reduce = true
attention-backend = "triton"
sampling-backend = "flashinfer"
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
# The two servers differ by where their weights come from; torch.compile takes a minute, once is enough.
DUMMY = """load-format = "dummy"
quantization = "awq_marlin"
enable-torch-compile = true
torch-compile-max-bs = 2"""
REAL = "enable-torch-compile = false"

SIX_LAYERS = {
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
    "bos_token_id": 256,
    "eos_token_id": 257,
    "quantization_config": {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "modules_to_not_convert": None,
    },
}


def write_model(folder: Path) -> None:
    """Write what SGLang needs of a model with dummy weights: its shape, and a tokenizer of single bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    # The GPT-2 alphabet: printable bytes stand for themselves, the others for code points from 256 on.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (code for code in range(256) if code not in plain)
    alphabet = {**{code: chr(code) for code in plain}, **{b: chr(256 + n) for n, b in enumerate(others)}}
    special = {"<s>": 256, "</s>": 257}
    options = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for token, number in special.items()
        ],
        "pre_tokenizer": {"type": "ByteLevel", **options},
        "decoder": {"type": "ByteLevel", **options},
        "model": {"type": "BPE", "vocab": {alphabet[code]: code for code in range(256)}, "merges": []},
    }
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    names = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 40960, **names}
    for name, document in (
        ("config.json", SIX_LAYERS),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings),
    ):
        (folder / name).write_text(json.dumps(document, indent=1))


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sgl_kernel_rebuild", *map(str, arguments)]
    print("$", " ".join(command[2:]), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stderr[-4000:], end="", flush=True)
    return done


def is_in_processes(key: str) -> bool:
    """Say whether a command line or an environment holds the key, as ps shows them."""
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                if key.encode() in (folder / name).read_bytes():
                    return True
            except OSError:
                continue
    return False


def is_in_bundle(key: str, bundle: Path) -> bool:
    with tarfile.open(bundle) as archive:
        files = [archive.extractfile(member) for member in archive if member.isfile()]
        return any(key.encode() in file.read() for file in files if file)


def summary(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What debug found, without commands and without the paths of this machine."""
    kept = ("name", "verdict", "detail", "fix")
    return [
        {key: re.sub(r" ?/\S+", "", item[key]) for key in kept if isinstance(item[key], str)}
        for item in findings
    ]


def drive(out: Path, name: str, model: Path, port: int, weights: str, *more: str) -> dict[str, Any]:
    """Start, test, look into and stop one server; return what happened."""
    profile = out / f"{name}.toml"
    profile.write_text(PROFILE.format(model=model, name=name, port=port, weights=weights))
    begin = time.monotonic()
    started = cli("deploy", "up", profile, "--mode", "local", "--unverified", "--json", *more)
    result: dict[str, Any] = {"name": name, "up": started.returncode}
    if started.returncode != 0:
        return result | {"error": started.stderr[-8000:]}
    report = json.loads(started.stdout)
    key_file = Path(report["key_file"])
    key, log = key_file.read_text().strip(), key_file.with_name("server.log")
    result |= {
        "ready_after_s": round(time.monotonic() - begin, 1),
        "models": report["models"],
        "plan": report["plan"],
        "status": cli("deploy", "status", name, "--json").returncode,
        "test_api": cli("test-api", name, "--output", out / f"{name}.json").returncode,
        "is_key_in_processes": is_in_processes(key),
    }
    bundle = out / f"{name}-debug.tar.gz"
    debug = cli("debug", name, "--host", "--json", "--bundle", bundle)
    result["debug"] = summary(json.loads(debug.stdout)["findings"]) if debug.stdout else debug.stderr[-2000:]
    result["is_key_in_bundle"] = is_in_bundle(key, bundle)
    text = log.read_text(errors="replace")
    result["is_key_in_log"] = key in text
    result["memory_logged"] = re.findall(
        r"^.*(?:mem usage=|avail mem=|max_total_num_tokens=|KV Cache).*$", text, re.M
    )
    (out / f"{name}.log").write_text(text.replace(key, "(the key)"))
    result["down"] = cli("deploy", "down", name).returncode
    result["is_stopped"] = cli("deploy", "status", name).returncode != 0
    return result


def is_right(result: dict[str, Any]) -> bool:
    return (
        all(result.get(step) == 0 for step in ("up", "status", "test_api", "down"))
        and not any(result[f"is_key_in_{place}"] for place in ("processes", "bundle", "log"))
        and result["is_stopped"]
    )


def draw(out: Path) -> None:
    from sgl_kernel_rebuild.deploy._plot import draw
    from sgl_kernel_rebuild.deploy.api_test import Report, Sample

    for path in sorted(out.glob("*.json")):
        document = json.loads(path.read_text())
        if isinstance(document, dict) and "samples" in document:
            report = Report(document["url"], document["model"], concurrency=document["concurrency"])
            report.concurrent = [Sample(**sample) for sample in document["samples"]["concurrent"]]
            draw(report, path.with_suffix(".png"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, help="a folder to serve as well")
    parser.add_argument("--port", type=int, default=8000, help="of the first server; the second has the next")
    parser.add_argument("--timeout", type=float, default=240, help="seconds to readiness, for each server")
    parser.add_argument("--gpu-memory", help="plan for that much, not for the GPU that is there")
    parser.add_argument("--draw", action="store_true", help="only draw the plots of the reports in OUT")
    options = parser.parse_args()
    out = options.out.resolve()
    if options.draw:
        draw(out)
        return 0
    shape = out / "model"
    write_model(shape)
    more = ["--timeout", str(options.timeout)]
    if options.gpu_memory:
        more += ["--gpu-memory", options.gpu_memory]
    servers = [("qwen3-32b-awq-shape", shape, DUMMY)]
    if options.model:
        servers.append(("small-real-packed", options.model.resolve(), REAL))
    results = []
    for number, (name, model, weights) in enumerate(servers):
        results.append(drive(out, name, model, options.port + number, weights, *more))
        # A run that is cut off leaves what it had.
        (out / "deploy.json").write_text(json.dumps(results, indent=1) + "\n")
    for result in results:
        print(result["name"], "is right" if is_right(result) else f"is not: {result}")
    return 0 if all(map(is_right, results)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
