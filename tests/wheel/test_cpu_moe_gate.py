from __future__ import annotations

import pytest
import sgl_kernel
import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "experts", "topk"), [(1, 8, 2), (9, 60, 4), (5, 128, 8), (0, 8, 2), (3, 7, 7)]
)
def test_topk_softmax(tokens: int, experts: int, topk: int, dtype: torch.dtype, renormalize: bool) -> None:
    logits = torch.stack([torch.randperm(experts) for _ in range(tokens)] or [torch.empty(experts)])
    logits = (logits[:tokens] / 16).to(dtype)
    weights, ids = torch.empty(tokens, topk), torch.empty(tokens, topk, dtype=torch.int32)
    assert sgl_kernel.topk_softmax(weights, ids, logits, renormalize) is None
    expected, expected_ids = torch.softmax(logits.double(), -1).topk(topk)
    if renormalize:
        expected = expected / expected.sum(-1, keepdim=True)
    assert torch.equal(ids.long(), expected_ids)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-7)


def test_equal_logits_go_to_the_lower_expert() -> None:
    logits = torch.zeros(1, 40)
    logits[0, 1::2] = -0.0
    logits[0, 30] = 1.0
    weights, ids = torch.empty(1, 5), torch.empty(1, 5, dtype=torch.int32)
    sgl_kernel.topk_softmax(weights, ids, logits, True)
    assert ids.tolist() == [[30, 0, 1, 2, 3]]


def gate(x: Tensor, bias: Tensor, groups: int, topk_group: int, topk: int) -> tuple[list[list[int]], Tensor]:
    """One expert after the other, in float64: the ids ascending and the scores."""
    score = torch.sigmoid(x.double())
    choice = score + bias.double()
    all_ids = []
    for row in choice:
        of_group = [group.sort(descending=True).values[:2].sum().item() for group in row.chunk(groups)]
        kept = sorted(range(groups), key=lambda g: -of_group[g])[:topk_group]
        size = len(row) // groups
        candidates = [expert for expert in range(len(row)) if expert // size in kept]
        all_ids.append(sorted(sorted(candidates, key=lambda expert: -row[expert].item())[:topk]))
    return all_ids, score


@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize(
    ("experts", "groups", "topk_group", "topk"),
    [(256, 8, 4, 8), (128, 4, 2, 6), (8, 8, 3, 2), (16, 1, 1, 16)],
)
def test_moe_fused_gate(
    experts: int,
    groups: int,
    topk_group: int,
    topk: int,
    shared: int,
    is_scaled: bool,
    bias_dtype: torch.dtype,
) -> None:
    x, bias = torch.randn(7, experts), torch.rand(experts).to(bias_dtype)
    weights, ids = sgl_kernel.moe_fused_gate(
        x, bias, groups, topk_group, topk + shared, shared, 2.5, is_scaled
    )
    expected, score = gate(x, bias, groups, topk_group, topk)
    routed, of_routed = ids[:, :topk].sort()
    assert routed.tolist() == expected
    share = score.gather(1, routed.long())
    share = share / share.sum(-1, keepdim=True) * (2.5 if is_scaled else 1)
    torch.testing.assert_close(weights[:, :topk].gather(1, of_routed).double(), share, rtol=1e-5, atol=1e-6)
    assert ids[:, topk:].tolist() == [list(range(experts, experts + shared))] * 7
    assert (weights[:, topk:] == (1.0 if is_scaled else 0.4)).all()


def test_opcheck() -> None:
    outputs = torch.empty(3, 2), torch.empty(3, 2, dtype=torch.int32)
    torch.library.opcheck(torch.ops.sgl_kernel.topk_softmax.default, (*outputs, torch.randn(3, 8), True))
    arguments = (torch.randn(3, 16), torch.rand(16), 4, 2, 3, 1, 2.5, False)
    torch.library.opcheck(torch.ops.sgl_kernel.moe_fused_gate.default, arguments)


W, IDS, G = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 8)
BAD = [
    ((W, IDS, G.double()), "gating_output: expected bfloat16 or float16 or float32, got float64"),
    ((W, IDS, G[0]), "gating_output: expected 2-D [tokens, experts], got 1-D [8]"),
    ((W, IDS, G.t().contiguous().t()), "gating_output.stride(-1): expected 1, got 3"),
    ((W.half(), IDS, G), "topk_weights: expected float32 (weights), got float16"),
    ((W[:2], IDS, G), "topk_weights.size(0): expected 3 (gating_output.size(0)), got 2"),
    ((W, IDS.long(), G), "topk_indices: expected int32 (ids), got int64"),
    ((W, IDS[:, :1], G), "topk_indices.size(1): expected 2 (topk_weights.size(1)), got 1"),
    ((W, IDS, G[:, :1]), "topk_weights.size(1): expected at most 1 (gating_output.size(1)), got 2"),
]


@pytest.mark.parametrize(("tensors", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_topk_softmax(tensors: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.ops.sgl_kernel.topk_softmax(*tensors, True)
    assert str(failure.value) == f"topk_softmax: {message}"


BAD_GATE = [
    ((60, 60, 4, 2, 4, 0), "input.size(1): expected a power of two up to 512, got 60"),
    ((1024, 1024, 64, 2, 4, 0), "input.size(1): expected a power of two up to 512, got 1024"),
    ((64, 32, 4, 2, 4, 0), "bias.size(0): expected 64 (input.size(1)), got 32"),
    (
        (64, 64, 1, 1, 4, 0),
        "num_expert_group: expected a divisor of 64 that leaves groups of at most 32 experts, got 1",
    ),
    ((64, 64, 4, 5, 4, 0), "topk_group: expected 1 to 4, got 5"),
    ((64, 64, 4, 2, 33, 0), "topk: expected 0 to 32, got 33"),
    (
        (16, 16, 4, 2, 10, 1),
        "num_fused_shared_experts: expected 0 to 10 that leave at most 8 of topk, got 1",
    ),
]


@pytest.mark.parametrize(("numbers", "message"), BAD_GATE, ids=[message for _, message in BAD_GATE])
def test_bad_moe_fused_gate(numbers: tuple[int, ...], message: str) -> None:
    experts, biases, *rest = numbers
    with pytest.raises(RuntimeError) as failure:
        torch.ops.sgl_kernel.moe_fused_gate(torch.zeros(3, experts), torch.zeros(biases), *rest, 1.0, False)
    assert str(failure.value) == f"moe_fused_gate: {message}"
