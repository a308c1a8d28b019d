from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sgl_kernel import sampling
from torch import Tensor

from ._compare import assert_same_bits
from ._tensors import DEVICE, embed_rows

VOCABULARIES = (1, 2, 3, 31, 111, 128, 2047, 2048, 32000, 128256, 151936)
ROWS = (1, 3, 7, 99, 989)
ELEMENTS_LIMIT = 1 << 25
TINY = 2.0**-149  # the least subnormal
SAMPLERS = ("top_p_sampling_from_probs", "top_k_top_p_sampling_from_probs", "min_p_sampling_from_probs")


def sizes() -> Iterator[object]:
    """rows, vocabulary; small ones carry the sanitizer's mark."""
    for vocabulary in VOCABULARIES:
        for rows in ROWS:
            if rows * vocabulary <= ELEMENTS_LIMIT:
                is_small = rows <= 3 and vocabulary <= 32000
                yield pytest.param(rows, vocabulary, marks=[pytest.mark.sanitizer] if is_small else [])


every_size = pytest.mark.parametrize(("rows", "vocabulary"), list(sizes()))


def kinds(vocabulary: int) -> dict[str, Tensor]:
    """Rows that are hard to filter, [vocabulary] each."""
    ramp = torch.arange(1, vocabulary + 1, device=DEVICE).float()
    hot = torch.zeros(vocabulary, device=DEVICE)
    hot[vocabulary // 2] = 1.0
    sparse = torch.rand(vocabulary, device=DEVICE) * (torch.rand(vocabulary, device=DEVICE) < 0.3)
    levels = (ramp * 7919 % 5 + 1) / (ramp * 7919 % 5 + 1).double().sum()
    return {
        "softmax": torch.randn(vocabulary, device=DEVICE).softmax(-1),
        "peaked": (6 * torch.randn(vocabulary, device=DEVICE)).softmax(-1),
        "steep": (40 * torch.randn(vocabulary, device=DEVICE)).softmax(-1),
        "uniform": torch.full((vocabulary,), 1 / vocabulary, device=DEVICE),
        "one hot": hot,
        "five values": levels.float(),
        "neighbours": (torch.full_like(ramp, 0.5).view(torch.int32) + ramp.int() % 64).view(torch.float32),
        "subnormal": TINY * ramp.flip(0),
        "sparse": sparse,
        "not normalized": ramp * 3,
    }


def thresholds(probs: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> tuple[Tensor, Tensor]:
    """The least kept value of each row, and that with top_p slightly larger: float64 sums may differ."""
    ordered = probs.double().sort(-1, descending=True).values
    size = ordered.size(-1)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    above = torch.where(is_new, torch.arange(size, device=probs.device), 0).cummax(-1).values
    sums = ordered.cumsum(-1)
    mass = torch.where(above > 0, sums.gather(-1, (above - 1).clamp(min=0)), 0.0)
    found = []
    for slack in (-1e-13, 1e-13):
        is_kept = torch.ones_like(is_new)
        if top_k is not None:
            is_kept &= above < top_k.long().clamp(min=1)[:, None]
        if top_p is not None:
            p = top_p.double()[:, None]
            # without slack where a single value is above: 0.5 against 0.5 has to be exact
            margin = torch.where(above > 1, slack, 0.0) * p.abs().clamp(max=1)
            is_kept &= (mass < p + margin) | (above == 0) | (p >= 1)
        found.append(torch.where(is_kept, ordered, torch.inf).amin(-1))
    return found[0], found[1]


def check_filter(result: Tensor, probs: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> None:
    strict, loose = thresholds(probs, top_k, top_p)
    is_kept = result > 0
    positive = probs > 0
    assert (is_kept | ~positive | (probs.double() < strict[:, None])).all(), "something is missing"
    assert (~is_kept | (positive & (probs.double() >= loose[:, None]))).all(), "something is too much"
    kept = torch.where(is_kept, probs, 0.0).double()
    expected = kept / kept.sum(-1, keepdim=True)
    torch.testing.assert_close(result.double(), expected.nan_to_num(0.0), rtol=3e-7, atol=2 * TINY)


def stack(rows: int, vocabulary: int) -> Tensor:
    every = list(kinds(vocabulary).values())
    return torch.stack([every[i % len(every)] for i in range(rows)])


@every_size
def test_top_k_renorm(rows: int, vocabulary: int) -> None:
    probs = stack(max(rows, 10) if rows > 1 else 1, vocabulary)
    for k in (1, 2, 10, 50, vocabulary // 2, vocabulary - 1, vocabulary, 1 << 30):
        top_k = torch.full((len(probs),), k, dtype=torch.int32, device=DEVICE)
        check_filter(sampling.top_k_renorm_probs(probs, k), probs, top_k, None)
    top_k = torch.randint(-1, vocabulary + 2, (len(probs),), device=DEVICE)
    check_filter(sampling.top_k_renorm_probs(probs, top_k), probs, top_k, None)


@every_size
def test_top_p_renorm(rows: int, vocabulary: int) -> None:
    probs = stack(max(rows, 10) if rows > 1 else 1, vocabulary)
    for p in (0.0, 0.1, 0.5, 0.9, 0.999, 1.0):
        top_p = torch.full((len(probs),), p, device=DEVICE)
        check_filter(sampling.top_p_renorm_probs(probs, p), probs, None, top_p)
    top_p = torch.rand(len(probs), device=DEVICE)
    check_filter(sampling.top_p_renorm_probs(probs, top_p), probs, None, top_p)


@pytest.mark.parametrize("zeros", [0, 1000, 200_000])
def test_exact_halves(zeros: int) -> None:
    """A mass of exactly top_p is not below it; ties of the threshold stay together."""
    head = torch.tensor([0.25, 0.5, 0.125, 0.125], device=DEVICE)
    probs = torch.cat([head, torch.zeros(zeros, device=DEVICE)])[None]
    below = math.nextafter(0.5, 0.0)
    for p, expected in (
        (0.5, [0.0, 1.0, 0.0, 0.0]),
        (float(torch.tensor(0.5).nextafter(torch.tensor(1.0))), [1 / 3, 2 / 3, 0.0, 0.0]),
        (0.75, [1 / 3, 2 / 3, 0.0, 0.0]),
        (0.76, [0.25, 0.5, 0.125, 0.125]),
        (below, [0.0, 1.0, 0.0, 0.0]),
    ):
        result = sampling.top_p_renorm_probs(probs, p)[0]
        torch.testing.assert_close(result[:4], torch.tensor(expected, device=DEVICE), rtol=1e-6, atol=0)
        assert not result[4:].any()


def check_mask(result: Tensor, logits: Tensor, top_k: int) -> None:
    least = logits.sort(-1, descending=True).values[:, min(top_k, logits.size(-1)) - 1]
    expected = torch.where(logits >= least[:, None], logits, -torch.inf)
    assert_same_bits(result, expected, "masked logits")


@every_size
def test_top_k_mask_logits(rows: int, vocabulary: int) -> None:
    logits = torch.randn(rows, vocabulary, device=DEVICE) * 5
    for k in (1, 7, vocabulary, 1 << 30):
        check_mask(sampling.top_k_mask_logits(logits, k), logits, k)
    logits = logits.mul(2).round() / 2  # ties, and zeros of both signs
    logits[:, ::3] = -torch.inf
    for k in (1, 7, vocabulary // 2 + 1):
        check_mask(sampling.top_k_mask_logits(logits, k), logits, k)


def sample(name: str, probs: Tensor, top_k: Any, limit: Any, **kwargs: Any) -> Tensor:
    function: Callable[..., Tensor] = getattr(sampling, name)
    if name == "top_k_top_p_sampling_from_probs":
        return function(probs, top_k, limit, filter_apply_order="joint", **kwargs)
    return function(probs, limit, **kwargs)


@pytest.mark.parametrize("name", SAMPLERS)
@every_size
def test_tokens_are_those_of_the_cpu(name: str, rows: int, vocabulary: int) -> None:
    rows = min(rows, (1 << 22) // vocabulary + 1)  # the CPU sorts
    probs = stack(rows, vocabulary)
    op = getattr(torch.ops.sgl_kernel, name)
    top_k = torch.randint(1, vocabulary + 2, (rows,), dtype=torch.int32, device=DEVICE)
    limit = torch.rand(rows, device=DEVICE)
    limits = (top_k, 0.0, limit, 0.0) if "top_k" in name else (limit, 0.0)
    tokens = torch.full((rows,), -1, dtype=torch.int32, device=DEVICE)
    op(probs, tokens, None, *limits, True, 1234567890123, 8)
    expected = torch.empty(rows, dtype=torch.int32)
    on_cpu = [value.cpu() if isinstance(value, Tensor) else value for value in limits]
    op(probs.cpu(), expected, None, *on_cpu, True, 1234567890123, 8)
    assert tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["softmax", "five values", "subnormal", "not normalized"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_frequencies(name: str, kind: str) -> None:
    """Chi-square of 200,000 draws against the exact distribution. The seed is fixed."""
    draws, vocabulary = 200_000, 111
    row = kinds(vocabulary)[kind]
    limit = 0.2 if "min_p" in name else 0.8
    if name == "min_p_sampling_from_probs":
        is_kept = row >= limit * row.max()
    else:
        total = min(float(row.double().sum()), 1.0)
        limit = limit if total > 0.5 else limit * total
        k = torch.tensor([40], device=DEVICE) if "top_k" in name else None
        strict, _ = thresholds(row[None], k, torch.tensor([limit], device=DEVICE))
        is_kept = row >= strict
    tokens = sample(name, row.expand(draws, -1), 40, limit).long()
    counts = torch.bincount(tokens, minlength=vocabulary).double()
    expected = torch.where(is_kept, row, 0.0).double()
    expected *= draws / expected.sum()
    assert not counts[~is_kept].any()
    freedom = int(is_kept.sum()) - 1
    chi_square = float(((counts - expected) ** 2 / expected)[is_kept].sum())
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 8  # beyond it less than once in 10,000


@pytest.mark.parametrize("name", SAMPLERS)
def test_generator(name: str) -> None:
    probs = torch.randn(99, 32000, device=DEVICE).softmax(-1)
    generator = torch.Generator(DEVICE).manual_seed(42)
    state = generator.get_state()
    first = sample(name, probs, 1 << 30, 0.9 if "top_p" in name else 0.0, generator=generator)
    assert not torch.equal(generator.get_state(), state)
    second = sample(name, probs, 1 << 30, 0.9 if "top_p" in name else 0.0, generator=generator)
    assert not torch.equal(first, second)
    generator.set_state(state)
    third = sample(name, probs, 1 << 30, 0.9 if "top_p" in name else 0.0, generator=generator)
    assert torch.equal(first, third)
    torch.cuda.manual_seed(42)
    default = sample(name, probs, 1 << 30, 0.9 if "top_p" in name else 0.0)
    assert torch.equal(first, default)


@pytest.mark.parametrize("order", ["joint", "top_k_first"])
@pytest.mark.parametrize("rows", [1, 99])
def test_from_logits_is_from_probs(order: str, rows: int) -> None:
    logits = torch.randn(rows, 32000, device=DEVICE) * 2
    results = []
    for function, x in (
        (sampling.top_k_top_p_sampling_from_logits, logits),
        (sampling.top_k_top_p_sampling_from_probs, logits.softmax(-1)),
    ):
        generator = torch.Generator(DEVICE).manual_seed(1)
        results.append(function(x, 100, 0.5, filter_apply_order=order, generator=generator))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", SAMPLERS)
def test_indices(name: str) -> None:
    probs = torch.randn(5, 128256, device=DEVICE).mul(3).softmax(-1)
    limit = torch.tensor([0.1, 0.5, 0.9, 0.7, 0.3], device=DEVICE)
    top_k = torch.tensor([1, 200, 3000, 50, 7], device=DEVICE)
    indices = torch.tensor([3, 0, 3, 99, -1], device=DEVICE)  # the last two do not exist
    rows = torch.tensor([3, 0, 3, 0, 0], device=DEVICE)
    torch.cuda.manual_seed(0)
    picked = sample(name, probs, top_k, limit, indices=indices)
    torch.cuda.manual_seed(0)
    assert torch.equal(picked, sample(name, probs[rows], top_k[rows], limit[rows]))


@pytest.mark.parametrize("vocabulary", [9, 32000, 151937])
@pytest.mark.parametrize("name", SAMPLERS)
def test_rows_without_probability(name: str, vocabulary: int) -> None:
    probs = torch.zeros(5, vocabulary, device=DEVICE)
    probs[1] = torch.nan
    probs[2] = -1.0
    probs[3, 5], probs[3, 6] = 0.5, torch.nan
    probs[4] = torch.inf
    tokens = sample(name, probs, 10, 0.5).tolist()
    assert tokens[:4] == [0, 0, 0, 5]
    assert 0 <= tokens[4] < vocabulary
    with pytest.raises(ValueError, match=r"^Input probs contains NaN\.$"):
        sample(name, probs, 10, 0.5, check_nan=True)


def test_filters_of_rows_without_probability() -> None:
    probs = torch.zeros(3, 32000, device=DEVICE)
    probs[1] = torch.nan
    probs[2, 7], probs[2, 8] = 0.25, torch.nan
    for result in (sampling.top_k_renorm_probs(probs, 5), sampling.top_p_renorm_probs(probs, 0.9)):
        assert result[2, 7] == 1.0
        assert result.count_nonzero() == 1


@pytest.mark.parametrize(("pad", "offset"), [(4, 0), (4, 4), (3, 0), (4, 1)])
@pytest.mark.parametrize("vocabulary", [64, 111, 32000])
def test_strided_rows(vocabulary: int, pad: int, offset: int) -> None:
    values = torch.randn(9, vocabulary, device=DEVICE).softmax(-1)
    x = embed_rows(values, pad=pad, offset=offset)
    out = embed_rows(values, pad=pad, offset=offset, poisoned=True)
    torch.ops.sgl_kernel.top_p_renorm_probs(x.view, out.view, None, 0.7)
    out.assert_guards_intact()
    assert_same_bits(out.view, sampling.top_p_renorm_probs(values, 0.7), "strided rows")
    torch.manual_seed(3)
    strided = sampling.top_p_sampling_from_probs(x.view, 0.7)
    torch.manual_seed(3)
    assert torch.equal(strided, sampling.top_p_sampling_from_probs(values, 0.7))


@pytest.mark.parametrize("rows", [1, 16, 128])
def test_every_run_gives_the_same_bits(rows: int) -> None:
    probs = torch.randn(rows, 151936, device=DEVICE).mul(2).softmax(-1)
    generator = torch.Generator(DEVICE)

    def run() -> list[Tensor]:
        results = [sampling.top_k_renorm_probs(probs, 1000), sampling.top_p_renorm_probs(probs, 0.95)]
        for name in SAMPLERS:
            generator.manual_seed(9)
            results.append(sample(name, probs, 5000, 0.3, generator=generator))
        return results

    first = run()
    for _ in range(100):
        for again, expected in zip(run(), first, strict=True):
            assert torch.equal(again, expected)


def test_no_rows() -> None:
    probs = torch.empty(0, 32000, device=DEVICE)
    assert sampling.top_k_renorm_probs(probs, 5).shape == (0, 32000)
    assert sampling.top_p_renorm_probs(probs, 0.5).shape == (0, 32000)
    assert sampling.top_k_mask_logits(probs, 5).shape == (0, 32000)
    for name in SAMPLERS:
        assert sample(name, probs, 5, 0.5).shape == (0,)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_captured_draw_repeats(name: str) -> None:
    probs = torch.randn(4, 32000, device=DEVICE).softmax(-1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = sample(name, probs, 50, 0.5)
    graph.replay()
    first = tokens.clone()
    graph.replay()
    assert torch.equal(tokens, first)
    assert (first >= 0).all()
    assert (first < 32000).all()


def test_more_than_2_to_the_31_elements() -> None:
    """8.6 GB of rows; the last one and those around element 2³¹ are looked at."""
    vocabulary = 1 << 20
    rows = (1 << 31) // vocabulary + 2
    probs = torch.rand(rows, vocabulary, device=DEVICE)
    tokens = sampling.top_k_top_p_sampling_from_probs(probs, 1, 1.0, filter_apply_order="joint").long()
    for row in (0, rows - 3, rows - 2, rows - 1):
        assert probs[row, tokens[row]] == probs[row].max()
