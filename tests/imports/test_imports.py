"""Small published wheels, really loaded under the torch of this session; the JSON beside has large ones."""

from __future__ import annotations

import importlib.metadata

import pytest

from ._check import compare

TORCH = importlib.metadata.version("torch")


# fbgemm-gpu-cpu 1.2.0 is for torch 2.7.0, 1.8.0 for 2.13.0. They need no CUDA build, which the torch of this
# session may not be.
@pytest.mark.parametrize("requirement", ["fbgemm-gpu-cpu==1.2.0", "fbgemm-gpu-cpu==1.8.0"])
def test_the_verdict_is_what_loading_says(requirement, tmp_path):
    result = compare(requirement, TORCH, tmp_path)
    assert len(result["objects"]) > 10
    assert result["agrees"]
    for item in result["objects"]:
        assert item["agrees"], f"{item['name']}: {item['verdict']}, but: {item['error'] or 'it loads'}"
