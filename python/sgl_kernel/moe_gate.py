"""The choice of experts per token: softmax gating, and sigmoid gating with a bias and groups of experts.

Logits are [tokens, experts], float16, bfloat16 or float32; last stride 1, any row stride. All is computed in
float32. Choices come in descending order; of equal ones the lower expert is first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sgl_kernel._checks import (
    Argument,
    check_device,
    check_dim,
    check_dtype,
    check_dtype_in,
    check_last_stride,
    check_size,
    fail,
)
from sgl_kernel._library import fakes, implements, ops

__all__ = ["moe_fused_gate", "topk_softmax"]


def topk_softmax(
    topk_weights: Tensor, topk_ids: Tensor, gating_output: Tensor, renormalize: bool = False
) -> None:
    """The largest probabilities of each token's softmax over the experts, and whose they are.

    topk_weights: float32 [tokens, topk], written. topk_ids: int32 [tokens, topk], written.
    renormalize: the weights of a token are divided by their sum.

    A token with a NaN among its logits gets NaN weights and ids in range. Raises RuntimeError for other
    shapes, dtypes and devices.
    """
    _topk_softmax(topk_weights, topk_ids, gating_output, renormalize)


def moe_fused_gate(
    input_tensor: Tensor,
    bias: Tensor,
    num_expert_group: int,
    topk_group: int,
    topk: int,
    num_fused_shared_experts: int = 0,
    routed_scaling_factor: float = 0,
    apply_routed_scaling_factor_on_output: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sigmoid gating with a bias, limited to the best groups of experts: weights and ids.

    Experts are chosen by ``sigmoid(x) + bias``: of the ``topk_group`` groups with the largest sum of their
    two best, the best ``topk - num_fused_shared_experts``. Their weights are ``sigmoid(x)``, divided by their
    sum. The last columns are the shared experts, with ids from the number of experts on and the weight
    ``1 / routed_scaling_factor``. ``apply_routed_scaling_factor_on_output`` multiplies all weights by that
    factor.

    The number of experts is a power of two up to 512, a group has at most 32 of them, topk is at most 32.
    ``bias`` is [experts], of any of the dtypes of the logits. Returns float32 and int32 [tokens, topk].
    Source: DeepSeek-V3 Technical Report, 2024, section 2.1.2.
    """
    weights, ids = _moe_fused_gate(
        input_tensor,
        bias,
        num_expert_group,
        topk_group,
        topk,
        num_fused_shared_experts,
        routed_scaling_factor,
        apply_routed_scaling_factor_on_output,
    )
    return weights, ids


_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MAX_EXPERTS, _MAX_TOPK, _MAX_GROUP = 512, 32, 32  # of the CUDA kernels: csrc/ops/heuristics/moe_gate.h

_topk_softmax = ops.topk_softmax.default
_moe_fused_gate = ops.moe_fused_gate.default


def _check_input(a: Argument) -> None:
    check_dim(a, 2, "[tokens, experts]")
    check_dtype_in(a, _DTYPES)
    check_last_stride(a)


def _check_softmax(topk_weights: Tensor, topk_indices: Tensor, gating_output: Tensor) -> None:
    op = "topk_softmax"
    _check_input(Argument(op, "gating_output", gating_output))
    a = Argument(op, "topk_weights", topk_weights)
    check_dim(a, 2, "[tokens, topk]")
    check_size(a, 0, gating_output.size(0), "gating_output.size(0)")
    check_dtype(a, torch.float32, "weights")
    check_device(a, gating_output.device, "device of gating_output")
    check_last_stride(a)
    a = Argument(op, "topk_indices", topk_indices)
    check_dim(a, 2, "[tokens, topk]")
    check_size(a, 0, gating_output.size(0), "gating_output.size(0)")
    check_size(a, 1, topk_weights.size(1), "topk_weights.size(1)")
    check_dtype(a, torch.int32, "ids")
    check_device(a, gating_output.device, "device of gating_output")
    check_last_stride(a)
    if topk_weights.size(1) > gating_output.size(1):
        expected = f"at most {gating_output.size(1)} (gating_output.size(1))"
        fail(op, "topk_weights.size(1)", expected, topk_weights.size(1))


def _check_gate(input: Tensor, bias: Tensor, groups: int, topk_group: int, topk: int, shared: int) -> None:
    op = "moe_fused_gate"
    _check_input(Argument(op, "input", input))
    experts = input.size(1)
    a = Argument(op, "bias", bias)
    check_dim(a, 1, "[experts]")
    check_size(a, 0, experts, "input.size(1)")
    check_dtype_in(a, _DTYPES)
    check_device(a, input.device, "device of input")
    check_last_stride(a)
    if not 1 <= experts <= _MAX_EXPERTS or experts & (experts - 1) != 0:
        fail(op, "input.size(1)", f"a power of two up to {_MAX_EXPERTS}", experts)
    if groups < 1 or experts % groups != 0 or experts // groups > _MAX_GROUP:
        expected = f"a divisor of {experts} that leaves groups of at most {_MAX_GROUP} experts"
        fail(op, "num_expert_group", expected, groups)
    if not 1 <= topk_group <= groups:
        fail(op, "topk_group", f"1 to {groups}", topk_group)
    if not 0 <= topk <= _MAX_TOPK:
        fail(op, "topk", f"0 to {_MAX_TOPK}", topk)
    available = topk_group * (experts // groups)
    if not 0 <= shared <= topk or topk - shared > available:
        expected = f"0 to {topk} that leave at most {available} of topk"
        fail(op, "num_fused_shared_experts", expected, shared)


def _best(values: Tensor, count: int) -> Tensor:
    """The indices of each row's ``count`` largest, descending; NaN first, the lower of equal ones first."""
    return torch.sort(values, dim=-1, descending=True, stable=True).indices[:, :count]


@fakes("topk_softmax")
def _topk_softmax_fake(
    topk_weights: Tensor, topk_indices: Tensor, gating_output: Tensor, renormalize: bool
) -> None:
    _check_softmax(topk_weights, topk_indices, gating_output)


@implements("topk_softmax")
def _topk_softmax_cpu(
    topk_weights: Tensor, topk_indices: Tensor, gating_output: Tensor, renormalize: bool
) -> None:
    _check_softmax(topk_weights, topk_indices, gating_output)
    ids = _best(gating_output.float(), topk_weights.size(1))
    weights = torch.softmax(gating_output.float(), -1).gather(1, ids)
    if renormalize:
        weights /= weights.sum(-1, keepdim=True)
    topk_weights.copy_(weights)
    topk_indices.copy_(ids)


@fakes("moe_fused_gate")
def _moe_fused_gate_fake(
    input: Tensor,
    bias: Tensor,
    num_expert_group: int,
    topk_group: int,
    topk: int,
    num_fused_shared_experts: int,
    routed_scaling_factor: float,
    apply_routed_scaling_factor_on_output: bool,
) -> tuple[Tensor, Tensor]:
    _check_gate(input, bias, num_expert_group, topk_group, topk, num_fused_shared_experts)
    shape = input.size(0), topk
    return input.new_empty(shape, dtype=torch.float32), input.new_empty(shape, dtype=torch.int32)


@implements("moe_fused_gate")
def _moe_fused_gate_cpu(
    input: Tensor,
    bias: Tensor,
    num_expert_group: int,
    topk_group: int,
    topk: int,
    num_fused_shared_experts: int,
    routed_scaling_factor: float,
    apply_routed_scaling_factor_on_output: bool,
) -> tuple[Tensor, Tensor]:
    _check_gate(input, bias, num_expert_group, topk_group, topk, num_fused_shared_experts)
    tokens, experts = input.shape
    score = torch.sigmoid(input.float())
    choice = score + bias.float()
    grouped = choice.view(tokens, num_expert_group, experts // num_expert_group)
    of_group = grouped.sort(dim=-1, descending=True).values[..., :2].sum(-1)
    is_out = torch.ones_like(of_group, dtype=torch.bool).scatter_(1, _best(of_group, topk_group), False)
    routed = topk - num_fused_shared_experts
    left = choice.masked_fill(is_out.repeat_interleave(experts // num_expert_group, 1), -torch.inf)
    ids = _best(left, routed)
    weights = score.gather(1, ids)
    weights = weights / weights.sum(-1, keepdim=True)
    scale = routed_scaling_factor if apply_routed_scaling_factor_on_output else 1.0
    reciprocal = 1.0 / routed_scaling_factor if routed_scaling_factor != 0 else math.inf
    shared_weight = 1.0 if apply_routed_scaling_factor_on_output else reciprocal
    shared_ids = torch.arange(experts, experts + num_fused_shared_experts).expand(tokens, -1)
    return (
        torch.cat((weights * scale, weights.new_full(shared_ids.shape, shared_weight)), 1),
        torch.cat((ids, shared_ids), 1).to(torch.int32),
    )
