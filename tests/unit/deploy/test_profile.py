"""Profiles: those of the repository, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from sgl_kernel_rebuild.deploy.profile import find_profile, load_profile, parse_option, parse_profile
from sgl_kernel_rebuild.errors import DeployError

REPOSITORY = Path(__file__).parents[3]
PROFILES = sorted((REPOSITORY / "deploy" / "profiles").glob("*.toml"))
MODEL = {"model": {"id": "some/model"}}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_of_the_repository_is_one(path):
    assert load_profile(path).server["kv-cache-dtype"]


def test_the_profile_of_the_issue():
    profile = load_profile(find_profile("qwen3-32b-awq-rtx5090", REPOSITORY))
    assert profile.model == "Qwen/Qwen3-32B-AWQ"
    assert profile.container.name == "qwen3-32b-awq-source"
    assert profile.container.image == "sglang:rtx5090-source"
    assert profile.container.port == 8000
    assert profile.environment["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    arguments = profile.arguments(model_path="/model", host="0.0.0.0", port=8000)
    text = " ".join(arguments)
    for option in (
        "--quantization awq_marlin",
        "--kv-cache-dtype fp8_e5m2",
        "--chunked-prefill-size 2048",
        "--enable-torch-compile",
        "--disable-custom-all-reduce",
        "--attention-backend triton",
        "--sampling-backend flashinfer",
        "--model-path /model --served-model-name qwen3-32b-awq",
    ):
        assert option in text
    assert "api-key" not in text


def test_all_faults_are_listed():
    document = {
        "model": {"served_name": "x", "id": 3},
        "server": {"api-key": "secret", "Bad_Name": 1, "list": [1]},
        "environment": {"1X": "a", "B": 2},
        "container": {"port": 70000, "name": "Not A Name", "colour": "red"},
        "test": {"timeout": 0, "requests": 1.5},
        "more": {},
    }
    with pytest.raises(DeployError) as caught:
        parse_profile(document, "bad")
    text = str(caught.value)
    for fault in (
        "[model] served_name: unknown",
        "[model] id: expected str, got 3",
        "[server] api-key: set by the deployment",
        "[server] Bad_Name: expected the long name",
        "[server] list: expected a bool, number or string",
        "[environment] 1X",
        "[environment] B: expected a variable with a string, got 2",
        "[container] port: expected 1 to 65535, got 70000",
        "[container] name: expected lower-case",
        "[container] colour: unknown",
        "[test] timeout: expected more than 0",
        "[test] requests: expected int, got 1.5",
        "[more]: unknown",
    ):
        assert fault in text


def test_a_model_is_needed():
    with pytest.raises(DeployError, match=r"\[model\] id: expected a hub name or a folder, got nothing"):
        parse_profile({}, "empty")


def test_no_toml(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("[model")
    with pytest.raises(DeployError, match=r"profile: x.toml: expected TOML"):
        load_profile(path)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(DeployError, match=r"known: .*qwen3-32b-awq-rtx5090.*got nothing-like-it"):
        find_profile("nothing-like-it", REPOSITORY / "tests")
    with pytest.raises(DeployError, match=r"expected a file, got missing\.toml"):
        find_profile("missing.toml")


def test_a_flag_is_on_off_or_left():
    profile = parse_profile({**MODEL, "server": {"a": True, "b": False, "c": 1}}, "p")
    assert profile.arguments(model_path="/m", host="h", port=1)[4:-4] == ["--a", "--c", "1"]
    changed = profile.with_options(a=False, b=True, c=None, d_e=0.5)
    assert changed.arguments(model_path="/m", host="h", port=1)[4:-4] == ["--b", "--c", "1", "--d-e", "0.5"]


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("tp-size=2", ("tp-size", 2)),
        ("--mem-fraction-static=0.8", ("mem-fraction-static", 0.8)),
        ("enable_torch_compile=false", ("enable-torch-compile", False)),
        ("disable-cuda-graph", ("disable-cuda-graph", True)),
        ("dtype=float16", ("dtype", "float16")),
        ("served=[1]", ("served", "[1]")),
    ],
)
def test_options_of_the_command_line(text, option):
    assert parse_option(text) == option


@pytest.mark.parametrize("text", ["api-key=x", "port=1", "=3", "A B=1"])
def test_options_that_are_none(text):
    with pytest.raises(DeployError, match="option: "):
        parse_option(text)
