"""The moe_gate family: which kernel for which shape, what the launch carries, what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ._tensors import Tensor

OPS = ["topk_softmax", "moe_fused_gate"]
DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
EXPERTS = (8, 64, 128, 256, 512)


@given(experts=st.integers(1, 3000), topk=st.integers(1, 60))
def test_a_warp_holds_the_row_or_the_shape_is_any(native: Any, experts: int, topk: int) -> None:
    shape = native.moe_gate.choose(experts, topk)
    name, values = native.moe_gate.shapes[shape]
    if name == "any":
        assert experts > 512 or topk > 32
    else:
        assert topk <= 32
        assert 32 * values >= experts
        assert shape == 0 or 32 * native.moe_gate.shapes[shape - 1][1] < experts


def softmax(tokens: int, experts: int, topk: int, dtype: str = "float32") -> list[Any]:
    weights, ids = Tensor(tokens, topk, dtype="float32"), Tensor(tokens, topk, dtype="int32")
    return [weights, ids, Tensor(tokens, experts, dtype=dtype), True]


def gate(tokens: int, experts: int, dtype: str = "float32", **changes: int) -> list[Any]:
    numbers = {"groups": experts // 8, "topk_group": 1, "topk": 4, "shared": 1} | changes
    bias = Tensor(experts, dtype="float16")
    return [Tensor(tokens, experts, dtype=dtype), bias, *numbers.values(), 2.5, False]


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    del native
    for dtype in DTYPES:
        for experts in EXPERTS:
            yield (
                softmax(9, experts, 4, dtype)
                if op == OPS[0]
                else gate(9, experts, dtype, groups=experts // 4)
            )
        if op == OPS[0]:
            yield softmax(9, 700, 4, dtype)


def test_softmax_launch(gpu: Any) -> None:
    gpu.torch.call("topk_softmax", softmax(9, 128, 8, "bfloat16"))
    (launch,) = gpu.driver.launches()
    assert launch["kernel"] == "topk_softmax_bf16_warp_4"
    assert (launch["grid"], launch["block"], launch["is_pdl"]) == ((3, 1, 1), (128, 1, 1), True)
    params = launch["params"]
    assert (params["tokens"], params["experts"], params["topk"]) == (9, 128, 8)
    assert params["is_renormalized"]


def test_gate_launch(gpu: Any) -> None:
    results = gpu.torch.call("moe_fused_gate", gate(9, 256, groups=8, topk_group=4, topk=9))
    assert [result["sizes"] for result in results] == [[9, 9], [9, 9]]
    (launch,) = gpu.driver.launches()
    assert launch["kernel"] == "moe_fused_gate_f32_warp_8"
    params = launch["params"]
    assert (params["group_size"], params["topk_group"], params["shared"]) == (32, 4, 1)
    assert params["bias_type"] == 1
    assert (params["shared_weight"], params["scale"]) == (pytest.approx(0.4), 1.0)


def test_nothing_to_do_needs_no_driver(native: Any) -> None:
    native.torch.call("topk_softmax", softmax(0, 8, 2))
    native.torch.call("topk_softmax", softmax(4, 8, 0))
    native.torch.call("moe_fused_gate", gate(0, 64))


REFUSED: list[tuple[str, list[Any], str]] = [
    (
        "topk_softmax",
        softmax(4, 8, 2, "int8"),
        "gating_output: expected bfloat16 or float16 or float32, got int8",
    ),
    (
        "topk_softmax",
        softmax(4, 8, 9),
        "topk_weights.size(1): expected at most 8 (gating_output.size(1)), got 9",
    ),
    ("moe_fused_gate", gate(4, 48), "input.size(1): expected a power of two up to 512, got 48"),
    (
        "moe_fused_gate",
        gate(4, 64, groups=1),
        "num_expert_group: expected a divisor of 64 that leaves groups of at most 32 experts, got 1",
    ),
    ("moe_fused_gate", gate(4, 64, topk_group=9), "topk_group: expected 1 to 8, got 9"),
    ("moe_fused_gate", gate(4, 64, topk=33), "topk: expected 0 to 32, got 33"),
    (
        "moe_fused_gate",
        gate(4, 64, topk=10),
        "num_fused_shared_experts: expected 0 to 10 that leave at most 8 of topk, got 1",
    ),
]


@pytest.mark.parametrize(("op", "values", "message"), REFUSED, ids=[x[-1] for x in REFUSED])
def test_what_is_refused(native: Any, op: str, values: list[Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'{op}: {message}')}$"):
        native.torch.call(op, values)
