"""test-api against a server of the tests' own: well behaved, and with every fault on its own."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from sgl_kernel_rebuild.cli import main
from sgl_kernel_rebuild.deploy import api_test
from sgl_kernel_rebuild.deploy.profile import Thresholds

KEY = "k" * 32
LIMITS = Thresholds(concurrency=3, requests=6, max_tokens=8, long_prompt_tokens=64, timeout=10.0)

# Fault, the first check that must fail by it, and how it must be named.
FAULTS = [
    ("unhealthy", "health", "expected 200 from /health"),
    ("lists another model", "models", "wrong model: expected fake-model, got another-model"),
    ("wrong model", "completion", "wrong model: expected an answer by fake-model, got one by another-model"),
    ("500", "completion", "status 500: the scheduler died"),
    ("bad json", "completion", "bad JSON"),
    ("no choices", "completion", "bad answer: expected one choice"),
    ("cut stream", "streaming", "cut stream: "),
    ("ends early", "streaming", "cut stream: expected an end with a reason, got 4 pieces"),
    ("bad json stream", "streaming", "bad JSON"),
    ("error in stream", "streaming", "error in the answer: the scheduler died"),
    ("no usage", "streaming", "expected the count of tokens"),
    ("accepts any key", "wrong key", "expected status 401, got an answer"),
    ("accepts bad input", "bad input", "expected status 400, got an answer"),
    ("accepts long prompts", "too long", "expected status 400, got an answer"),
    ("cuts prompts", "long prompt", "cut prompt: expected about 64 tokens read, got 20"),
]


def check(report, name):
    return next(item for item in report.checks if item.name == name)


def test_a_good_server_passes_every_check(server):
    report = api_test.run(server().url, KEY, model="fake-model", limits=LIMITS)
    assert [(item.name, item.verdict) for item in report.checks] == [
        (name, "pass") for name, _, _ in api_test.CHECKS
    ]
    assert report.passed
    figures = report.figures()
    assert figures["concurrent"]["requests"] == LIMITS.requests
    assert figures["single"]["total_p50"] >= figures["single"]["first_token_p50"] > 0
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


def test_without_a_name_the_first_model_is_tested(server):
    report = api_test.run(f"{server(model='other').url}/v1/", KEY, model=None, limits=LIMITS)
    assert report.passed
    assert report.model == "other"


@pytest.mark.parametrize(("fault", "name", "text"), FAULTS, ids=[fault for fault, _, _ in FAULTS])
def test_a_fault_is_reported_as_what_it_is(server, fault, name, text):
    report = api_test.run(server(fault).url, KEY, model="fake-model", limits=LIMITS)
    failed = [item for item in report.checks if item.verdict == "fail"]
    assert failed[0].name == name
    assert text in failed[0].detail
    assert not report.passed
    assert KEY not in json.dumps(report.to_json())


def test_a_server_that_never_answers_is_timed_out(server):
    limits = Thresholds(concurrency=1, requests=1, timeout=0.5)
    report = api_test.run(server("slow").url, KEY, model="fake-model", limits=limits)
    for name in ("completion", "chat", "streaming"):
        assert check(report, name).detail == "timed out: expected an answer in time, got none"
    assert check(report, "concurrency").verdict == "skip"
    assert check(report, "concurrency").detail == "needs streaming"


def test_no_server_is_no_connection(free_port):
    report = api_test.run(f"http://127.0.0.1:{free_port}", KEY, model=None, limits=LIMITS)
    assert check(report, "health").verdict == "fail"
    assert {item.verdict for item in report.checks[1:]} == {"skip"}


def test_the_wrong_key_is_said_to_be_refused(server):
    report = api_test.run(server(key="another" * 4).url, KEY, model=None, limits=LIMITS)
    assert check(report, "models").detail == "status 401: Unauthorized"


def test_requests_that_fail_among_others_are_counted(server):
    made = server()
    limits = Thresholds(concurrency=1, requests=6, max_tokens=8, long_prompt_tokens=64, timeout=10.0)
    report = api_test.run(made.url, KEY, model=None, limits=limits, progress=_at_concurrency(made))
    assert check(report, "concurrency").detail == "2 of 6 requests failed: status 500: the scheduler died"


def _at_concurrency(made):
    def add(name):
        if name == "concurrency":
            made.faults.add("refuses some")

    return add


@pytest.mark.parametrize(
    ("limits", "name", "text"),
    [
        ({"min_tokens_per_second": 1e12}, "streaming", "slow: expected at least 1e+12 tokens/s"),
        ({"first_token_p95": 1e-9}, "concurrency", "slow: first token: expected at most 1e-09 s at p95"),
        ({"request_p95": 1e-9}, "concurrency", "slow: request: expected at most 1e-09 s at p95"),
    ],
)
def test_a_threshold_is_held(server, limits, name, text):
    limits = Thresholds(concurrency=1, requests=2, long_prompt_tokens=64, timeout=10.0, **limits)
    report = api_test.run(server().url, KEY, model=None, limits=limits)
    assert check(report, name).verdict == "fail"
    assert check(report, name).detail.startswith(text)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_lies_within_its_values(values, level):
    value = api_test.percentile(values, level)
    assert min(values) <= value <= max(values) or abs(value - max(values)) <= 1e-6 * max(values)


def test_percentiles_are_known():
    assert api_test.percentile([4, 1, 3, 2], 50) == 2.5
    assert api_test.percentile([1, 2, 3], 100) == 3
    with pytest.raises(ValueError, match="at least one value"):
        api_test.percentile([], 50)


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(KEY)
    return path


def run_cli(*arguments):
    return CliRunner().invoke(main, ["test-api", *map(str, arguments)])


def test_the_command_writes_table_json_and_plot(server, key_file, tmp_path):
    options = ("--url", server().url, "--key-file", key_file, "--requests", 4, "--concurrency", 2)
    result = run_cli(*options, "--output", tmp_path / "r.json", "--plot", tmp_path / "r.png")
    assert result.exit_code == 0, result.output
    assert "concurrency" in result.output
    assert json.loads((tmp_path / "r.json").read_text())["passed"] is True
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert KEY not in result.output


def test_the_command_fails_for_ci(server, key_file):
    result = run_cli("--url", server("500").url, "--key-file", key_file, "--json")
    assert result.exit_code == 15
    assert json.loads(result.stdout)["passed"] is False


def test_a_key_others_can_read_is_refused(server, key_file):
    key_file.chmod(0o644)
    result = run_cli("--url", server().url, "--key-file", key_file)
    assert result.exit_code == 9
    assert "only its owner may read, got mode 644" in result.stderr


def test_a_url_needs_a_key_file():
    assert run_cli("--url", "http://127.0.0.1:1").exit_code == 2


def test_a_dry_run_asks_nothing(key_file):
    result = run_cli("--url", "http://127.0.0.1:1", "--key-file", key_file, "--dry-run")
    assert result.exit_code == 0
    assert "streaming at http://127.0.0.1:1" in result.stdout
