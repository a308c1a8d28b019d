from __future__ import annotations

import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():  # what torch says while it is imported is not ours to judge
    warnings.simplefilter("ignore")
    import torch

HERE = Path(__file__).resolve().parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.collectonly or not any(HERE in item.path.parents for item in items):
        return
    if not torch.cuda.is_available():
        build = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
        if torch.version.cuda is None:
            build = f"torch {torch.__version__} is a CPU build"
        raise pytest.UsageError(
            f"gpu tests need a CUDA device: {build} and sees {torch.cuda.device_count()} devices; "
            "run them on a machine with an NVIDIA GPU (sm_80 or later)"
        )


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
