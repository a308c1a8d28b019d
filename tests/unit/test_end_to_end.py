from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import end_to_end
from benchmarks._results import ResultError

MEASURED = {
    "batch_size": 16,
    "median_decode_throughput": 2760.04,
    "prefill_latency": 0.37151,
    "run_name": "x",
}


def test_a_row_has_the_published_figures_of_its_batch() -> None:
    assert end_to_end.row_of(MEASURED) == {
        "batch": 16,
        "decode_tokens_per_s": 2760.0,
        "prefill_tokens": 4096,
        "prefill_s": 0.3715,
        "published_0.3.7_decode_tokens_per_s": 1380.0,
        "published_0.3.7_prefill_s": 0.743,
    }


def test_the_table_says_how_much_faster() -> None:
    assert end_to_end.table([end_to_end.row_of(MEASURED)]).splitlines()[-1] == (
        "| 16 | 2760 | 2.00 | 4096 tokens | 0.371 | 2.00 |"
    )


def test_the_model_has_a_config_and_a_tokenizer(tmp_path: Path) -> None:
    end_to_end.write_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "awq"
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "tokenizer.json", "tokenizer_config.json")
    }


def test_what_sglang_says_is_kept_and_its_failure_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    script = "print('Warmup ...'); print('other'); raise SystemExit(3)"
    with pytest.raises(ResultError, match=r"(?s)bench_one_batch ended with code 3\n.*other"):
        end_to_end.follow([sys.executable, "-c", script], log, tmp_path, is_quiet=False)
    assert log.read_text() == "Warmup ...\nother\n"
    assert capsys.readouterr().err == "Warmup ...\n"
