"""Small published wheels, really loaded under the torch of this session; docs/audit.md has the large ones."""

from __future__ import annotations

import importlib.metadata

import pytest

from ._check import compare

TORCH = importlib.metadata.version("torch")


# Each is for one torch: torchvision 0.22.0 and xformers 0.0.30 for 2.7.0, torchvision 0.28.0 for 2.13.0.
@pytest.mark.parametrize("requirement", ["torchvision==0.22.0", "torchvision==0.28.0", "xformers==0.0.30"])
def test_the_verdict_is_what_loading_says(requirement, tmp_path):
    result = compare(requirement, TORCH, tmp_path)
    assert result["objects"]
    for item in result["objects"]:
        assert item["agrees"], f"{item['name']}: {item['verdict']}, but: {item['error'] or 'it loads'}"
