from __future__ import annotations

import pytest
import sgl_kernel
import torch
from torch import Tensor

from ._compare import assert_close
from ._tensors import DEVICE, embed_rows, name, randn

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
EXPERTS = [(1, 1), (7, 3), (8, 8), (32, 2), (33, 5), (60, 4), (64, 6), (72, 6), (128, 8), (160, 6)]
EXPERTS += [(256, 8), (257, 9), (512, 32), (512, 33), (513, 8), (1025, 40), (5000, 3)]


def first_of_equals(values: Tensor, count: int) -> Tensor:
    return torch.sort(values, dim=-1, descending=True, stable=True).indices[:, :count]


def check_softmax(logits: Tensor, topk: int, renormalize: bool) -> None:
    weights = torch.full((logits.size(0), topk), torch.nan, device=DEVICE)
    ids = torch.full((logits.size(0), topk), -1, dtype=torch.int32, device=DEVICE)
    assert sgl_kernel.topk_softmax(weights, ids, logits, renormalize) is None
    expected_ids = first_of_equals(logits.double(), topk)
    expected = torch.softmax(logits.double(), -1).gather(1, expected_ids)
    if renormalize:
        expected = expected / expected.sum(-1, keepdim=True)
    assert torch.equal(ids.long(), expected_ids)
    assert_close(weights, expected, ulps=32, slack=1e-7)  # a sum and an exponential in fp32


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("experts", "topk"), EXPERTS)
@pytest.mark.parametrize("tokens", [0, 1, 129, 4096])
def test_topk_softmax(tokens: int, experts: int, topk: int, dtype: torch.dtype, renormalize: bool) -> None:
    """Rounded to 16 bits, many logits are equal: the lower expert comes first."""
    check_softmax(randn(tokens, experts, dtype=dtype, scale=3.0), topk, renormalize)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("experts", "topk"), EXPERTS)
def test_topk_softmax_of_few_tokens(experts: int, topk: int, dtype: torch.dtype) -> None:
    check_softmax(randn(5, experts, dtype=dtype, scale=3.0), topk, renormalize=True)


@pytest.mark.parametrize("experts", [60, 700])
def test_equal_zero_and_infinite_logits(experts: int) -> None:
    logits = torch.zeros(4, experts, device=DEVICE)
    logits[0, ::2] = -0.0
    logits[1, 5:] = -torch.inf
    logits[2] = -1e30
    logits[3, 7] = 200.0
    check_softmax(logits, 9, renormalize=False)
    check_softmax(logits, 9, renormalize=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("experts", [60, 700])
def test_a_spoilt_row_has_ids_in_range(experts: int, value: float) -> None:
    logits = randn(3, experts, dtype=torch.float32)
    logits[1, 40] = value
    weights, ids = torch.zeros(3, 6, device=DEVICE), torch.zeros(3, 6, dtype=torch.int32, device=DEVICE)
    sgl_kernel.topk_softmax(weights, ids, logits, False)
    assert weights[1].isnan().all()
    assert weights[::2].isfinite().all()
    assert ((ids >= 0) & (ids < experts)).all()
    assert all(len(set(row)) == 6 for row in ids.tolist())


@pytest.mark.parametrize("experts", [60, 700])
def test_strided_rows(experts: int) -> None:
    values = randn(9, experts, dtype=torch.float32)
    logits, weights = embed_rows(values, pad=3, offset=1), embed_rows(values[:, :4], pad=5, poisoned=True)
    ids = torch.zeros(9, 7, dtype=torch.int32, device=DEVICE)[:, 2:6]
    sgl_kernel.topk_softmax(weights.view, ids, logits.view, True)
    weights.assert_guards_intact()
    expected_ids = first_of_equals(values, 4)
    expected = torch.softmax(values.double(), -1).gather(1, expected_ids)
    assert torch.equal(ids.long(), expected_ids)
    assert_close(weights.view.contiguous(), expected / expected.sum(-1, keepdim=True), ulps=32)


GATES = [(256, 8, 4, 8), (128, 4, 2, 6), (64, 8, 3, 6), (32, 1, 1, 8), (8, 8, 3, 2), (512, 16, 4, 16)]
GATES += [(2, 1, 1, 1), (256, 128, 20, 8), (512, 16, 16, 30)]


every_gate = pytest.mark.parametrize(("experts", "groups", "topk_group", "topk"), GATES)


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("bias_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@every_gate
@pytest.mark.parametrize("tokens", [0, 5, 1025])
def test_moe_fused_gate(
    tokens: int,
    experts: int,
    groups: int,
    topk_group: int,
    topk: int,
    dtype: torch.dtype,
    bias_dtype: torch.dtype,
    shared: int,
    is_scaled: bool,
) -> None:
    x, bias = randn(tokens, experts, dtype=dtype), randn(experts, dtype=bias_dtype, scale=0.1)
    arguments = (groups, topk_group, topk + shared, shared, 2.5, is_scaled)
    weights, ids = sgl_kernel.moe_fused_gate(x, bias, *arguments)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)

    score = torch.sigmoid(x.float())
    choice = score + bias.float()
    grouped = choice.view(tokens, groups, experts // groups)
    of_group = grouped.sort(dim=-1, descending=True).values[..., :2].sum(-1)
    is_kept = torch.zeros_like(of_group).scatter(1, first_of_equals(of_group, topk_group), 1.0) > 0
    kept = is_kept.repeat_interleave(experts // groups, 1)
    expected_ids = first_of_equals(choice.masked_fill(~kept, -torch.inf), topk)
    # exp of the device and of torch differ in the last bit, which may turn neighbours: in few rows at most.
    is_same = (ids[:, :topk].sort().values == expected_ids.sort().values).all(-1)
    assert (~is_same).sum() <= tokens // 100
    assert ids.min() >= 0 if tokens else True
    share = torch.sigmoid(x.double()).gather(1, ids[:, :topk].long())
    share = share / share.sum(-1, keepdim=True) * (2.5 if is_scaled else 1.0)
    assert_close(weights[:, :topk].contiguous(), share, ulps=32)
    assert (ids[:, topk:] == torch.arange(experts, experts + shared, device=DEVICE)).all()
    assert (weights[:, topk:] == (1.0 if is_scaled else torch.tensor(0.4))).all()


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@every_gate
def test_moe_fused_gate_of_few_tokens(
    experts: int, groups: int, topk_group: int, topk: int, dtype: torch.dtype
) -> None:
    test_moe_fused_gate(3, experts, groups, topk_group, topk, dtype, dtype, 2, True)


def test_equal_choices_go_to_the_lower_group_and_expert() -> None:
    weights, ids = sgl_kernel.moe_fused_gate(
        torch.zeros(2, 64, device=DEVICE), torch.zeros(64, device=DEVICE), 8, 2, 10
    )
    assert ids.tolist() == [list(range(10))] * 2
    assert_close(weights, torch.full_like(weights, 0.1).double(), ulps=2)
