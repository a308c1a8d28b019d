"""One model, one reference, every process of SGLang started at once; the results become one JSON file."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import shlex
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():  # what torch says while it is imported is not ours to judge
    warnings.simplefilter("ignore")
    import torch

from . import _model, _reference

Record = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("consumer")
    group.addoption(
        "--consumer-out",
        type=Path,
        default=Path("build/consumer"),
        metavar="DIR",
        help="folder of consumer.json and of SGLang's logs, made if absent",
    )


@pytest.fixture(scope="session")
def out(pytestconfig: pytest.Config) -> Path:
    folder: Path = pytestconfig.getoption("--consumer-out").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def gpu() -> str:
    """The GPU's name; without one this ends the tests that need it with a sentence."""
    if not torch.cuda.is_available():
        pytest.fail(
            f"SGLang needs a GPU, and torch {torch.__version__} sees none; run this where an NVIDIA GPU "
            "(sm_80 or later) is, or only tests/consumer/test_model.py",
            pytrace=False,
        )
    return torch.cuda.get_device_name()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, gpu: str) -> Path:
    folder = tmp_path_factory.mktemp("consumer") / "model"
    _model.make(folder, device="cuda")
    return folder


@pytest.fixture(scope="session")
def prompts(model: Path) -> list[_model.Prompt]:
    return _model.load_prompts(model)


@pytest.fixture(scope="session")
def reference(
    model: Path, prompts: list[_model.Prompt]
) -> Callable[[torch.dtype | None], list[_reference.Answer]]:
    """The answers to all prompts, by what the KV cache is rounded to."""
    qwen3 = _reference.Qwen3(model, "cuda")
    answers: dict[torch.dtype | None, list[_reference.Answer]] = {}

    def answers_for(kv_dtype: torch.dtype | None) -> list[_reference.Answer]:
        if kv_dtype not in answers:
            answers[kv_dtype] = [
                qwen3.greedy(prompt.tokens, len(prompt.answer), kv_dtype) for prompt in prompts
            ]
        return answers[kv_dtype]

    return answers_for


@pytest.fixture(scope="session")
def consumers(request: pytest.FixtureRequest, model: Path, out: Path) -> Iterator[dict[str, Any]]:
    """Every configuration that a selected test names, started; they come up beside one another."""
    from . import _serving

    selected = {
        item.callspec.params["consumer"].name
        for item in request.session.items
        if isinstance(item, pytest.Function) and "consumer" in getattr(item, "callspec", Params).params
    }
    running = {}
    try:
        for configuration in _serving.CONFIGURATIONS:
            if configuration.name in selected:
                running[configuration.name] = _serving.start(configuration, model, out)
        yield running
    finally:
        for consumer in running.values():
            consumer.stop()


class Params:
    """Stands for the callspec of a test without parameters."""

    params: dict[str, Any] = {}  # noqa: RUF012


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config, gpu: str, model: Path, out: Path) -> Iterator[dict[str, Any]]:
    from . import _serving

    found: dict[str, Any] = {
        "command": command(pytestconfig),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gpu": gpu,
        "driver": driver(),
        "torch": torch.__version__,
        "sglang": importlib.metadata.version("sglang"),
        "sgl_kernel": {
            "version": importlib.metadata.version("sgl-kernel"),
            "sha256 of the library": hashlib.sha256(_serving.library().read_bytes()).hexdigest(),
        },
        "model": json.loads((model / "config.json").read_text()),
        "configurations": {},
    }
    yield found
    (out / "consumer.json").write_text(json.dumps(found, indent=1) + "\n")


@pytest.fixture
def record(results: dict[str, Any], consumer: Any) -> Record:
    """Adds to the results of the configuration under test."""

    def add(**values: Any) -> None:
        configuration = consumer.configuration
        entry = results["configurations"].setdefault(
            configuration.name,
            {
                "via": "sglang.Engine" if configuration.is_engine else "sglang.launch_server",
                "arguments": " ".join(configuration.arguments),
            },
        )
        entry.update(values)

    return add


def command(pytestconfig: pytest.Config) -> str:
    """How pytest was started, without the path of the results."""
    folder = str(pytestconfig.getoption("--consumer-out"))
    words = ["DIR" if word == folder else word for word in map(str, pytestconfig.invocation_params.args)]
    return shlex.join(["python", "-m", "pytest", *words])


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(
            query, capture_output=True, text=True, check=True, env=os.environ
        ).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
