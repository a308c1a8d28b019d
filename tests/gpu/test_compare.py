"""The comparer and the guards fail where they should."""

from __future__ import annotations

import pytest
import torch

from ._compare import assert_close, assert_same_bits, ulp_distance
from ._tensors import DEVICE, HALVES, embed_rows, name, randn


def tensor(*values: float, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=name)
def test_ulps_count_representable_values(dtype: torch.dtype) -> None:
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    a = tensor(1.0, 1.0, 0.0, tiny, torch.finfo(dtype).max, dtype=dtype)
    b = tensor(1.0 + eps, 1.0 - eps, -0.0, -tiny, torch.inf, dtype=dtype)
    assert ulp_distance(a, b).tolist() == [1, 2, 0, 2, 1]


@pytest.mark.parametrize(
    ("result", "reference"),
    [(1.0, 1.002), (torch.nan, 1.0), (1.0, torch.nan), (65504.0, 70000.0), (torch.inf, 65504.0), (-1.0, 1.0)],
)
def test_differences_are_found(result: float, reference: float) -> None:
    with pytest.raises(AssertionError, match=r"1 of 3 values are off.*\n.*position.*\n.*\[1\]"):
        assert_close(tensor(1.0, result, 2.0), tensor(1.0, reference, 2.0, dtype=torch.float64))


def test_slack_is_absolute() -> None:
    assert_close(tensor(1.0, 1e-4), tensor(1.0, 2e-4, dtype=torch.float64), slack=1.1e-4)
    with pytest.raises(AssertionError, match="1 of 2 values"):
        assert_close(tensor(1.0, 1e-4), tensor(1.0, 2e-4, dtype=torch.float64), slack=0.9e-4)


def test_nan_matches_nan() -> None:
    assert_close(tensor(torch.nan, torch.inf), tensor(torch.nan, torch.inf, dtype=torch.float64))


def test_bits_tell_the_sign_of_zero() -> None:
    with pytest.raises(AssertionError, match="0x8000"):
        assert_same_bits(tensor(-0.0), tensor(0.0))


def test_writes_outside_the_view_are_found() -> None:
    rows = embed_rows(randn(3, 7, dtype=torch.bfloat16), pad=2, offset=1)
    rows.view.fill_(1.0)
    rows.assert_guards_intact()
    rows.buffer[8] = 0.0  # behind the first row
    with pytest.raises(AssertionError, match=r"1 elements outside the tensor were written, at \[8\]"):
        rows.assert_guards_intact()
