"""Profiles, models and deployments in a temporary folder; the servers of the tests' own."""

from __future__ import annotations

import json
import socket
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hypothesis import HealthCheck, settings
from openai_server import OpenAIServer

# Nothing here depends on a time.
settings.register_profile("deploy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deploy")

QWEN3_32B_AWQ = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
}


@pytest.fixture
def server():
    """Start a server with faults; all end with the test."""
    running = []

    def start(*faults, key="k" * 32, model="fake-model"):
        made = OpenAIServer(key=key, model=model, faults=faults)
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.append((made, thread))
        return made

    yield start
    for made, thread in running:
        made.shutdown()
        thread.join()
        made.server_close()


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3_32B_AWQ))
    return folder


@pytest.fixture
def state_home(tmp_path, monkeypatch):
    """Where deployments are kept, and a Python path on which SGLang is the tests' own."""
    home = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here / 'fake_sglang'}:{here}")
    return home / "sgl-kernel-rebuild" / "deployments"


@pytest.fixture
def profile_file(tmp_path, model_folder, free_port):
    """Write a profile for the fake server; ``server`` lines go into [server]."""

    def write(*server, name="test-deployment", port=free_port):
        path = tmp_path / f"{name}.toml"
        lines = [
            "[model]",
            f'id = "{model_folder}"',
            'served-name = "fake-model"',
            "[server]",
            'load-format = "dummy"',
            *server,
            "[environment]",
            'PYTORCH_CUDA_ALLOC_CONF = "expandable_segments:True"',
            "[container]",
            f'name = "{name}"',
            f"port = {port}",
            "[test]",
            "concurrency = 2",
            "requests = 4",
            "timeout = 10",
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write
