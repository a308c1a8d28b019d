from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sgl_kernel
import torch
from sgl_kernel import _sampling_cpu, sampling
from torch import Tensor

SIZES = (1, 2, 31, 111, 1000)
SAMPLERS = ("top_p_sampling_from_probs", "top_k_top_p_sampling_from_probs", "min_p_sampling_from_probs")
OPS = ("top_k_renorm_probs", "top_p_renorm_probs", "top_k_mask_logits", *SAMPLERS)
TINY = 1e-42  # subnormal


def rows(size: int) -> dict[str, Tensor]:
    """Rows that are hard to filter: ties, subnormals, zeros, one token."""
    ramp = torch.arange(1, size + 1).float()
    hot = torch.zeros(size)
    hot[size // 2] = 1.0
    half = torch.zeros(size)
    half[::2] = torch.rand((size + 1) // 2)
    return {
        "softmax": torch.randn(size).softmax(-1),
        "peaked": (8 * torch.randn(size)).softmax(-1),
        "uniform": torch.full((size,), 1 / size),
        "one hot": hot,
        "ties": (ramp % 7 + 1) / (ramp % 7 + 1).sum(),
        "subnormal": TINY * ramp.flip(0),
        "zeros between": half,
        "not normalized": ramp * 100,
    }


def kept(row: Tensor, top_k: float, top_p: float) -> Tensor:
    """Which entries the definition keeps, entry by entry, in float64."""
    row = row.double()
    is_kept = torch.zeros(len(row), dtype=torch.bool)
    for i, x in enumerate(row):
        above = row[row > x]
        has_k = top_k >= len(row) or len(above) < max(top_k, 1)
        has_p = top_p >= 1 or float(above.sort(descending=True).values.sum()) < top_p or not len(above)
        is_kept[i] = has_k and has_p
    return is_kept


@pytest.mark.parametrize("size", SIZES[:-1])
@pytest.mark.parametrize("top_k", [0, 1, 2, 7, 30, 31, 1 << 30])
def test_top_k_renorm(size: int, top_k: int) -> None:
    for label, row in rows(size).items():
        expected = torch.where(kept(row, top_k, 1.0), row, 0.0).double()
        result = sampling.top_k_renorm_probs(row[None], top_k)[0]
        assert torch.equal(result > 0, expected > 0), label
        torch.testing.assert_close(result.double(), expected / expected.sum(), rtol=1e-6, atol=0, msg=label)


@pytest.mark.parametrize("size", SIZES[:-1])
@pytest.mark.parametrize("top_p", [-1.0, 0.0, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0, 2.0])
def test_top_p_renorm(size: int, top_p: float) -> None:
    for label, row in rows(size).items():
        limit = float(torch.tensor(top_p))  # as float32
        expected = torch.where(kept(row, size, limit), row, 0.0).double()
        result = sampling.top_p_renorm_probs(row[None], top_p)[0]
        assert torch.equal(result > 0, expected > 0), label
        torch.testing.assert_close(result.double(), expected / expected.sum(), rtol=1e-6, atol=0, msg=label)


def test_aliases() -> None:
    assert sgl_kernel.top_k_renorm_prob is sampling.top_k_renorm_prob is sampling.top_k_renorm_probs
    assert sgl_kernel.top_p_renorm_prob is sampling.top_p_renorm_prob is sampling.top_p_renorm_probs


def test_thresholds_per_row() -> None:
    probs = torch.randn(4, 50).softmax(-1)
    top_k, top_p = torch.tensor([1, 5, 50, 1 << 30]), torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    by_k, by_p = sampling.top_k_renorm_probs(probs, top_k), sampling.top_p_renorm_probs(probs, top_p)
    for i in range(4):
        one = probs[i : i + 1]
        assert torch.equal(by_k[i], sampling.top_k_renorm_probs(one, int(top_k[i]))[0])
        assert torch.equal(by_p[i], sampling.top_p_renorm_probs(one, float(top_p[i]))[0])


def test_half_precision_is_converted() -> None:
    probs = torch.randn(3, 40).softmax(-1).half()
    result = sampling.top_p_renorm_probs(probs, 0.5)
    assert result.dtype == torch.float32
    assert torch.equal(result, sampling.top_p_renorm_probs(probs.float(), 0.5))


@pytest.mark.parametrize("top_k", [1, 3, 40, 100])
def test_mask_logits(top_k: int) -> None:
    logits = torch.randn(5, 40)
    logits[1] = torch.arange(40) // 4 - 5.0  # ties
    logits[2, ::3] = -torch.inf
    logits[3] = torch.tensor([0.0, -0.0]).repeat(20)
    result = sampling.top_k_mask_logits(logits, top_k)
    for row, masked in zip(logits, result, strict=True):
        expected = torch.where(kept(row, top_k, 1.0), row, -torch.inf)
        assert torch.equal(masked.view(torch.int32), expected.view(torch.int32))


def test_mask_logits_drops_nan_first() -> None:
    logits = torch.tensor([[1.0, torch.nan, 3.0, -torch.inf]])
    masked = sampling.top_k_mask_logits(logits, 2)
    assert masked.tolist() == [[1.0, -torch.inf, 3.0, -torch.inf]]
    assert sampling.top_k_mask_logits(logits, 4).isnan().tolist() == [[False, True, False, False]]


def sample(name: str, probs: Tensor, **kwargs: Any) -> Tensor:
    function: Callable[..., Tensor] = getattr(sgl_kernel, name)
    top_k, limit = kwargs.pop("top_k", 10), kwargs.pop("limit", 0.5)
    if name == "top_k_top_p_sampling_from_probs":
        return function(probs, top_k, limit, **kwargs)
    return function(probs, limit, **kwargs)


@pytest.mark.parametrize("order", ["joint", "top_k_first"])
def test_samples_are_kept(order: str) -> None:
    for label, row in rows(111).items():
        is_kept = kept(row, 9, 0.5)
        if order == "top_k_first":
            first = sampling.top_k_renorm_probs(row[None], 9)[0]
            is_kept = kept(first, 111, 0.5) & (first > 0)
        tokens = sgl_kernel.top_k_top_p_sampling_from_probs(
            row.expand(200, -1), 9, 0.5, filter_apply_order=order
        )
        assert tokens.dtype == torch.int32
        assert is_kept[tokens].all(), label
        assert (row[tokens] > 0).all(), label


@pytest.mark.parametrize("min_p", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_min_p_samples_are_kept(min_p: float) -> None:
    for label, row in rows(111).items():
        tokens = sgl_kernel.min_p_sampling_from_probs(row.expand(200, -1), min_p)
        least = torch.minimum(torch.tensor(min_p) * row.max(), row.max())
        assert (row[tokens] >= least).all(), label
        assert (row[tokens] > 0).all(), label


def test_frequencies() -> None:
    """Chi-square of 20,000 draws, 19 degrees of freedom: beyond 43.8 once in 1000. The seed is fixed."""
    probs = torch.randn(20).softmax(-1)
    draws = sgl_kernel.top_p_sampling_from_probs(probs.expand(20_000, -1), 1.0)
    counts = torch.bincount(draws.long(), minlength=20).double()
    expected = 20_000 * probs.double() / probs.double().sum()
    assert float(((counts - expected) ** 2 / expected).sum()) < 43.8


def test_random_bits_are_those_of_philox() -> None:
    """Known answers of Random123: counter and key zero, and the digits of pi."""
    assert _sampling_cpu.random_bits(0, 0, 0) == 0xE169C58D << 32 | 0x6627E8D5
    seed = 0x299F31D0 << 32 | 0xA4093822
    row = 0x03707344 << 32 | 0x13198A2E
    block = 0x85A308D3 << 32 | 0x243F6A88
    assert _sampling_cpu.philox(seed, block, row)[:2] == (0xD16CFE09, 0x94FDCCEB)


@pytest.mark.parametrize("name", SAMPLERS)
def test_equal_state_equal_tokens(name: str) -> None:
    probs = torch.randn(40, 500).softmax(-1)
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    first = sample(name, probs, generator=generator)
    assert not torch.equal(sample(name, probs, generator=generator), first)
    generator.set_state(state)
    assert torch.equal(sample(name, probs, generator=generator), first)
    torch.manual_seed(3)
    default = sample(name, probs)
    torch.manual_seed(3)
    assert torch.equal(sample(name, probs), default)


@pytest.mark.parametrize("order", ["joint", "top_k_first"])
def test_from_logits_is_from_probs(order: str) -> None:
    logits = torch.randn(99, 111)
    results = []
    for function, x in (
        (sampling.top_k_top_p_sampling_from_logits, logits),
        (sgl_kernel.top_k_top_p_sampling_from_probs, logits.softmax(-1)),
    ):
        generator = torch.Generator().manual_seed(1)
        results.append(function(x, 10, 0.8, filter_apply_order=order, generator=generator))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", SAMPLERS)
def test_indices(name: str) -> None:
    probs = torch.randn(4, 50).softmax(-1)
    indices = torch.tensor([3, 0, 3, 9])  # of these 9 does not exist
    limit, top_k = torch.tensor([0.1, 0.5, 0.9, 0.7]), torch.tensor([1, 2, 3, 50])
    torch.manual_seed(0)
    picked = sample(name, probs, indices=indices, limit=limit, top_k=top_k)
    rows = torch.tensor([3, 0, 3, 0])
    torch.manual_seed(0)
    assert torch.equal(picked, sample(name, probs[rows], limit=limit[rows], top_k=top_k[rows]))


@pytest.mark.parametrize("name", SAMPLERS)
def test_rows_without_probability(name: str) -> None:
    probs = torch.zeros(4, 9)
    probs[1] = torch.nan
    probs[2] = -1.0
    probs[3, 5], probs[3, 6] = 0.5, torch.nan
    assert sample(name, probs).tolist() == [0, 0, 0, 5]
    with pytest.raises(ValueError, match=r"^Input probs contains NaN\.$"):
        sample(name, probs, check_nan=True)


def test_other_orders_are_refused() -> None:
    probs = torch.ones(1, 3)
    for function in (
        sgl_kernel.top_k_top_p_sampling_from_probs,
        sampling.top_k_top_p_sampling_from_logits,
    ):
        with pytest.raises(ValueError, match="filter_apply_order: expected 'top_k_first' or 'joint'"):
            function(probs, 1, 0.5, filter_apply_order="top_p_first")


def arguments(name: str, **changed: Any) -> tuple[Any, ...]:
    x = torch.randn(5, 64).softmax(-1)
    if name not in SAMPLERS:
        limit = (torch.full((5,), 3, dtype=torch.int32), 0) if "top_k" in name else (None, 0.5)
        return changed.get("x", x), changed.get("out", torch.empty(5, 64)), *limit
    limits = (None, 0.5) if "top_k" not in name else (torch.full((5,), 3, dtype=torch.int32), 0.0, None, 0.5)
    out = changed.get("out", torch.empty(5, dtype=torch.int32))
    return changed.get("x", x), out, changed.get("indices"), *limits, True, 7, 4


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.sgl_kernel, name).default, arguments(name))


@pytest.mark.parametrize("name", OPS)
def test_empty(name: str) -> None:
    out = torch.empty(0, dtype=torch.int32) if name in SAMPLERS else torch.empty(0, 64)
    x = torch.empty(0, 64)
    op = getattr(torch.ops.sgl_kernel, name)
    limits = arguments(name)[2:] if name not in SAMPLERS else arguments(name)[3:]
    limits = tuple(value[:0] if isinstance(value, Tensor) else value for value in limits)
    op(x, out, *(() if name not in SAMPLERS else (None,)), *limits)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(5)}, r"expected 2-D \[batch, vocabulary\], got 1-D \[5\]"),
        ({"x": torch.ones(5, 64).half()}, r"expected float32 \(for this argument\), got float16"),
        ({"x": torch.ones(64, 5).t()}, r"stride\(-1\): expected 1, got 5"),
        ({"x": torch.ones(4, 64)}, r"size\(0\): expected 4 \(rows of the input\), got 5"),
        ({"out": torch.ones(5, 64).half()}, "output: expected"),
    ],
)
def test_what_is_refused(name: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{name}: .*{message}"):
        getattr(torch.ops.sgl_kernel, name)(*arguments(name, **changed))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(5, 0)}, r"probs\.size\(1\): expected at least 1, got 0"),
        ({"indices": torch.zeros(5).long()}, r"maybe_indices: expected int32 .*, got int64"),
        ({"indices": torch.zeros(4).int()}, r"maybe_indices\.size\(0\): expected 5 .*, got 4"),
        ({"x": torch.ones(0, 64), "indices": torch.zeros(5).int()}, r"probs\.size\(0\): expected at least 1"),
    ],
)
def test_what_samplers_refuse(name: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{name}: {message}"):
        getattr(torch.ops.sgl_kernel, name)(*arguments(name, **changed))


@pytest.mark.parametrize("name", ["top_k_renorm_probs", "top_p_renorm_probs", "top_k_mask_logits"])
def test_filters_compile_to_one_graph(name: str, compile_whole: Callable[..., Any]) -> None:
    function = getattr(sampling, name)
    x, limit = torch.randn(4, 50).softmax(-1), torch.tensor([1, 2, 3, 4]) if "k" in name[:5] else 0.5
    assert torch.equal(compile_whole(lambda x: function(x, limit) * 2)(x), function(x, limit) * 2)
