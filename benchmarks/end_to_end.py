"""``python -m benchmarks.end_to_end OUT_DIR``: SGLang's own benchmark of Qwen3-32B-AWQ, with random weights.

Runs ``sglang.bench_one_batch`` once, in a process of its own: prefill of 256 tokens a sequence, then decoding
with CUDA graphs, at 1, 16 and 64 sequences. Writes end_to_end.json, and end_to_end.log with all it said.

--json  print the results as JSON
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ._results import ResultError
from .run import describe_machine, describe_package

__all__ = ["main"]

INPUT, OUTPUT = 256, 64
BATCHES = (1, 16, 64)
COMMAND = (
    *("python3", "-m", "sglang.bench_one_batch", "--load-format", "dummy", "--quantization", "awq_marlin"),
    *("--dtype", "bfloat16", "--attention-backend", "triton", "--sampling-backend", "pytorch"),
    *("--input-len", str(INPUT), "--output-len", str(OUTPUT), "--mem-fraction-static", "0.8"),
    *("--batch-size", *map(str, BATCHES)),
)
# The published sgl-kernel 0.3.7 on another H200, same command, torch and SGLang, 2026-11-22; its missing
# symbol was forwarded by a shim, only to have these figures. By batch: decoded tokens/s, prefill in s.
PUBLISHED = {1: (97.5, 0.063), 16: (1380.0, 0.743), 64: (3049.0, 2.956)}
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "quantization_config": {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "modules_to_not_convert": None,
    },
}
# SGLang loads a tokenizer; the benchmark draws token ids and never asks it.
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"-": 0}, "unk_token": "-"},
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end", description="Time Qwen3-32B-AWQ in SGLang on this GPU."
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder of the results, made if absent")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args(arguments)
    try:
        found = run(options.out_dir.resolve(), is_quiet=options.json)
    except ResultError as err:
        print(f"error: {err}", file=sys.stderr)
        return 8
    print(json.dumps(found) if options.json else table(found["rows"]))
    return 0


def run(out: Path, is_quiet: bool) -> dict[str, Any]:
    import sgl_kernel  # after the arguments: --help needs neither
    import torch

    if not torch.cuda.is_available():
        raise ResultError(f"end_to_end needs a CUDA device: torch {torch.__version__} sees none")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        model, measured = Path(temporary), Path(temporary, "result.jsonl")
        write_model(model)
        arguments = ["--model-path", str(model), "--result-filename", str(measured)]
        follow([sys.executable, *COMMAND[1:], *arguments], out / "end_to_end.log", model, is_quiet)
        lines = measured.read_text().splitlines() if measured.exists() else []
    rows = [row_of(json.loads(line)) for line in lines]
    if [row["batch"] for row in rows] != list(BATCHES):
        raise ResultError(
            f"end_to_end: expected results at {BATCHES}, got {len(rows)}: {out / 'end_to_end.log'}"
        )
    found = {
        "command": " ".join((*COMMAND, "--model-path", "DIR")),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "package": describe_package(sgl_kernel),
        "sglang": importlib.metadata.version("sglang"),
        "rows": rows,
    }
    (out / "end_to_end.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def write_model(folder: Path) -> None:
    """What SGLang reads of a model whose weights it invents."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def follow(command: list[str], log_path: Path, cwd: Path, is_quiet: bool) -> None:
    """Runs a command, all of its output into a file, what it measures to the terminal as well."""
    with (
        log_path.open("w") as log,
        subprocess.Popen(
            command, cwd=cwd, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            if not is_quiet and line.startswith(
                ("Load weight", "Warmup", "Benchmark", "Prefill", "Decode. ")
            ):
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        tail = "".join(log_path.read_text().splitlines(keepends=True)[-40:])
        raise ResultError(f"end_to_end: sglang.bench_one_batch ended with code {process.returncode}\n{tail}")


def row_of(measured: dict[str, Any]) -> dict[str, Any]:
    batch = int(measured["batch_size"])
    decode, prefill = PUBLISHED[batch]
    return {
        "batch": batch,
        "decode_tokens_per_s": round(measured["median_decode_throughput"], 1),
        "prefill_tokens": batch * INPUT,
        "prefill_s": round(measured["prefill_latency"], 4),
        "published_0.3.7_decode_tokens_per_s": decode,
        "published_0.3.7_prefill_s": prefill,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, for the README."""
    lines = [
        "| batch | decode, tokens/s | over published 0.3.7 | prefill of | s | over published 0.3.7 |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        decode, prefill = row["decode_tokens_per_s"], row["prefill_s"]
        faster = decode / row["published_0.3.7_decode_tokens_per_s"]
        sooner = row["published_0.3.7_prefill_s"] / prefill
        lines.append(
            f"| {row['batch']} | {decode:.0f} | {faster:.2f} "
            f"| {row['prefill_tokens']} tokens | {prefill:.3f} | {sooner:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
