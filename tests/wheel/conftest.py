"""Tests of the installed wheel on a machine that needs no GPU, under whichever torch is there."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

with warnings.catch_warnings():  # what torch says while it is imported is not ours to judge
    warnings.simplefilter("ignore")
    import torch


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


@pytest.fixture
def assert_rounded() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Compares a result with its float64 reference.

    The result is computed in float32 and rounded once, so it is within one unit in the last place of a
    half-precision dtype; in float32 itself the operations before the last one add a few units. The absolute
    bound is for sums that cancel, of terms of magnitude up to 10.
    """

    def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
        epsilon = torch.finfo(actual.dtype).eps
        rtol = 8 * epsilon if actual.dtype == torch.float32 else epsilon
        torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=4e-6, equal_nan=True)

    return check


@pytest.fixture
def compile_whole() -> Iterator[Callable[..., Any]]:
    """Compiles a function into one graph: a graph break is an error. Tracing needs no compiler."""
    torch._dynamo.reset()
    yield functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
