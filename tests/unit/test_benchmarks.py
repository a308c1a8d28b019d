from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks._results import (
    SUBJECT,
    Baseline,
    FamilyRun,
    ResultError,
    Row,
    Timing,
    call_count,
    geometric_mean,
    load_baseline,
    load_runs,
    save_run,
    set_count,
)
from benchmarks.run import FAMILIES, PEER, merge, parse

H200 = {"gpu": "NVIDIA H200", "driver": "580.1", "torch": "2.11.0", "cuda": "13.0", "python": "3.12.3"}
BASELINE = Baseline(
    *("published 1.0", "NVIDIA H200", "2.7.0", "2026-01-01"), {("norm", "a"): 6.0, ("norm", "gone"): 1.0}
)


def timing(us: float) -> Timing:
    return Timing(us, us * 0.9, us * 1.1)


@pytest.fixture
def norm() -> FamilyRun:
    rows = [
        Row("a", 2_000_000, {SUBJECT: timing(2.0), "torch eager": timing(4.0)}),
        Row("b", 4_000_000, {SUBJECT: timing(1.0), "torch eager": timing(9.0)}),
        Row("c", 100, {SUBJECT: Timing(error="RuntimeError: no"), "torch eager": timing(5.0)}),
    ]
    return FamilyRun(
        family="norm",
        rows=rows,
        machine=H200,
        package={"version": "0.3.7+x", "libraries": {"lib.so": "ab" * 32}},
        peers={"torch eager": "torch 2.11.0"},
        ceiling_gbps=4000.0,
        ceiling_how="copy_ of 1 GiB, bfloat16",
        command="python -m benchmarks.run OUT_DIR",
        date="2026-01-02T03:04:05+00:00",
    )


def test_the_timing_is_the_median_with_its_extremes() -> None:
    assert Timing.of([5.0, 1.0, 3.0]) == Timing(3.0, 1.0, 5.0)
    assert timing(2.0).spread == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("nbytes", "sets", "calls"),
    [
        (1, 64, 64),
        (20_480, 64, 64),
        (2 << 20, 64, 64),
        (4 << 20, 32, 64),
        (100 << 20, 2, 42),
        (1 << 30, 1, 41),
    ],
)
def test_inputs_rotate_past_the_cache(nbytes: int, sets: int, calls: int) -> None:
    assert (set_count(nbytes), call_count(sets)) == (sets, calls)


def test_rates_and_ratios(norm: FamilyRun) -> None:
    a, b, c = norm.rows
    assert a.gbps() == pytest.approx(1000.0)  # 2 MB in 2 µs
    assert (a.speedup("torch eager"), b.speedup("torch eager")) == (2.0, 9.0)
    assert (c.gbps(), c.speedup("torch eager"), a.speedup("torch.compile")) == (None, None, None)


def test_geometric_mean() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([]) is None


def test_a_run_survives_its_file(norm: FamilyRun, tmp_path: Path) -> None:
    save_run(norm, tmp_path)
    (loaded,) = load_runs(tmp_path)
    assert loaded.rows[:2] == norm.rows[:2]
    assert loaded.rows[2].times[SUBJECT].error == "RuntimeError: no"
    assert math.isnan(loaded.rows[2].times[SUBJECT].us)
    assert dataclasses.replace(loaded, rows=[]) == dataclasses.replace(norm, rows=[])
    assert [path.name for path in tmp_path.iterdir()] == ["norm.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema": 2}', '{"schema": 1, "rows": [{}]}', '{"schema": 1}']
)
def test_what_is_no_result_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "rope.json").write_text(text)
    with pytest.raises(ResultError, match=r"rope\.json: expected the results of one family, got"):
        load_runs(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"expected <family>\.json, got none"):
        load_runs(tmp_path)


@pytest.mark.parametrize("text", [None, "", "{}", '{"rows": [{"family": "norm"}]}'])
def test_what_is_no_baseline_is_named(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ResultError, match=r"other\.json: expected a baseline"):
        load_baseline(path)


def test_the_committed_baseline_is_of_these_families() -> None:
    baseline = load_baseline(report.BASELINE)
    assert baseline.gpu == "NVIDIA H200"
    assert {family for family, _ in baseline.us} == set(FAMILIES)
    assert baseline.us["norm", "rmsnorm m294912 d128"] == 356.503
    assert len(baseline.us) == 81


def test_the_report_tells_measured_ratios_from_others(norm: FamilyRun) -> None:
    text = report.markdown([norm], BASELINE)
    assert (
        "| case | µs | spread | GB/s | of copy rate | over published 1.0 (other run, same machine type) |"
        in text
    )
    assert "| over torch eager (measured) |" in text
    assert "| a | 2.000 | 20.0% | 1000.0 | 25.0% | 3.00 | 2.00 |" in text
    assert "| b | 1.000 | 20.0% | 4000.0 | 100.0% | - | 9.00 |" in text
    assert "| c | - | - | - | - | - | - |" in text
    assert "- c, sgl_kernel: RuntimeError: no" in text
    assert "| norm | published 1.0 (other run, same machine type) | 1 | 3.00 | 3.00 |" in text
    assert "| norm | torch eager (measured) | 2 | 4.24 | 2.00 |" in text
    assert "NVIDIA H200, driver 580.1, torch 2.11.0 (CUDA 13.0), Python 3.12.3" in text


def test_another_gpu_is_not_compared_with_the_baseline(norm: FamilyRun) -> None:
    other = dataclasses.replace(norm, machine={**H200, "gpu": "NVIDIA A100"})
    text = report.markdown([other], BASELINE)
    assert "not compared with published 1.0" in text
    assert "over published 1.0" not in text.partition("## Geometric means")[2]
    assert report.baseline_points(other, BASELINE) == []


def test_the_plot_shows_each_timed_case(norm: FamilyRun) -> None:
    assert report.points(norm) == [(2.0, pytest.approx(1000.0)), (4.0, pytest.approx(4000.0))]
    assert report.baseline_points(norm, BASELINE) == [(2.0, pytest.approx(2_000_000 / 6.0 / 1e3))]


def test_the_report_of_an_empty_folder_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 8
    assert "expected <family>.json, got none" in capsys.readouterr().err


def test_a_peer_joins_the_rows_of_its_cases(norm: FamilyRun) -> None:
    theirs = [Row("a", 2_000_000, {SUBJECT: timing(3.0)}), Row("other", 1, {SUBJECT: timing(1.0)})]
    peer = dataclasses.replace(
        norm, rows=theirs, package={"version": "0.3.7", "libraries": {"lib.so": "cd" * 32}}
    )
    merged = merge(norm, peer)
    assert [row.case for row in merged.rows] == ["a", "b", "c"]
    assert merged.rows[0].speedup(PEER) == 1.5
    assert PEER not in merged.rows[1].times
    assert merged.peers[PEER] == "sgl_kernel 0.3.7 (`lib.so` sha256 `cdcdcdcdcdcdcdcd`)"


def test_the_recorded_command_holds_no_path() -> None:
    options = parse(["/somewhere/out", "--family", "rope", "--quick", "--peer-path", "/somewhere/else"])
    assert options.command == "python -m benchmarks.run OUT_DIR --family rope --quick --peer-path DIR"


def test_results_are_strict_json(norm: FamilyRun, tmp_path: Path) -> None:
    def reject(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(save_run(norm, tmp_path).read_text(), parse_constant=reject)
