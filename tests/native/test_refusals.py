"""Every check of an op refuses what it is there for: one argument of a sound call is replaced.

The families' own tests have the checks that are theirs alone; marlin_gemm, norm, activation and rope have all
of theirs there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from ._tensors import INT_MAX, Tensor

ELSEWHERE = "cuda:1"


def half(*sizes: int, **fields: Any) -> Tensor:
    return Tensor(*sizes, dtype="float16", **fields)


def int32(*sizes: int, **fields: Any) -> Tensor:
    return Tensor(*sizes, dtype="int32", **fields)


def f32(*sizes: int, **fields: Any) -> Tensor:
    return Tensor(*sizes, dtype="float32", **fields)


def fp8(*sizes: int, **fields: Any) -> Tensor:
    return Tensor(*sizes, dtype="uint8", **fields)


def on(device: str, reason: str) -> str:
    return f"expected a tensor on cuda:0 ({reason}), got one on {device}"


def other_device(name: str, reason: str) -> str:
    return f"{name}: {on(ELSEWHERE, reason)}"


def gaps(name: str, *sizes: int) -> str:
    return f"{name}: expected a contiguous tensor, got {list(sizes)} with other strides"


# An op's sound call.
CALLS: dict[str, list[Any]] = {
    "awq_dequantize": [int32(64, 4), half(2, 32), int32(2, 4)],
    "gptq_gemm": [half(3, 64), int32(8, 32), int32(2, 4), half(2, 32), int32(64), False, 4],
    "gptq_shuffle": [int32(8, 32), int32(64), 4],
    "awq_marlin_repack": [int32(32, 8), 32, 64, 4],
    "awq_marlin_moe_repack": [int32(2, 32, 8), int32(2, 0), 32, 64, 4],
    "gptq_marlin_repack": [int32(4, 64), int32(32), 32, 64, 4],
    "merge_state": [Tensor(3, 4, 16), f32(3, 4), Tensor(3, 4, 16), f32(3, 4), Tensor(3, 4, 16), f32(3, 4)],
    "apply_token_bitmask_inplace_cuda": [Tensor(4, 64), int32(4, 2), int32(2)],
    "store_kv_cache": [Tensor(9, 64), Tensor(9, 32), int32(5), Tensor(5, 64), Tensor(5, 32)],
    "downcast_fp8": [
        *(Tensor(5, 64), Tensor(5, 32), fp8(9, 64), fp8(9, 32), f32(1), f32(1), int32(5), 1, 0, 0),
    ],
    "topk_softmax": [f32(4, 2), int32(4, 2), f32(4, 8), True],
    "moe_fused_gate": [f32(4, 64), f32(64), 8, 4, 8, 0, 2.5, False],
    "moe_align_block_size": [int32(4, 8), 129, 64, int32(9000), int32(200), int32(1), int32(130), True],
}

# op, the argument that is replaced, by what, what is said
AWQ, GPTQ, SHUFFLE = "awq_dequantize", "gptq_gemm", "gptq_shuffle"
MERGE, MASK, STORE, DOWNCAST = (
    "merge_state",
    "apply_token_bitmask_inplace_cuda",
    "store_kv_cache",
    "downcast_fp8",
)
SOFTMAX, GATE, ALIGN = "topk_softmax", "moe_fused_gate", "moe_align_block_size"
REPACKS = ("awq_marlin_repack", "awq_marlin_moe_repack", "gptq_marlin_repack")

Refusal = tuple[str, int, Any, str]


def of_packed_weights() -> Iterator[Refusal]:
    like_weight = "device of qweight"
    yield AWQ, 0, int32(64), "qweight: expected 2-D [in, out / 8], got 1-D [64]"
    yield AWQ, 0, half(64, 4), "qweight: expected int32 (packed weights), got float16"
    yield AWQ, 0, int32(64, 4, strides=[8, 1]), gaps("qweight", 64, 4)
    yield AWQ, 0, int32(2**31, 4), "qweight.size(0): expected less than 2147483648, got 2147483648"
    yield AWQ, 0, int32(64, 2**28), "qweight.size(1): expected less than 2147483648, got 2147483648"
    yield AWQ, 1, half(32), "scales: expected 2-D [groups, out], got 1-D [32]"
    yield AWQ, 1, half(2, 31), "scales.size(1): expected 32 (8 * qweight.size(1)), got 31"
    yield AWQ, 1, f32(2, 32), "scales: expected float16 or bfloat16, got float32"
    yield AWQ, 1, half(2, 32, device=ELSEWHERE), other_device("scales", like_weight)
    yield AWQ, 1, half(2, 32, strides=[64, 1]), gaps("scales", 2, 32)
    for groups in (0, 3):
        message = f"scales.size(0): expected a divisor of 64 (qweight.size(0)), got {groups}"
        yield AWQ, 1, half(groups, 32), message
    yield AWQ, 2, int32(2), "qzeros: expected 2-D [groups, out / 8], got 1-D [2]"
    yield AWQ, 2, int32(1, 4), "qzeros.size(0): expected 2 (scales.size(0)), got 1"
    yield AWQ, 2, int32(2, 5), "qzeros.size(1): expected 4 (qweight.size(1)), got 5"
    yield AWQ, 2, half(2, 4), "qzeros: expected int32 (packed zero points), got float16"
    yield AWQ, 2, int32(2, 4, device=ELSEWHERE), other_device("qzeros", like_weight)

    like_weight = "device of b_q_weight"
    for op, at in ((GPTQ, 6), (SHUFFLE, 2)):
        yield op, at, 5, "bit: expected 2, 3, 4 or 8, got 5"
    for op, at, name in ((GPTQ, 1, "b_q_weight"), (SHUFFLE, 0, "q_weight")):
        yield op, at, int32(8), f"{name}: expected 2-D [in * bit / 32, out], got 1-D [8]"
        yield op, at, half(8, 32), f"{name}: expected int32 (packed weights), got float16"
        yield op, at, int32(8, 32, strides=[64, 1]), gaps(name, 8, 32)
        many = f"{name}.size(1): expected less than 2147483648, got 2147483648"
        yield op, at, int32(8, 2**31), many
    rows = f"expected less than 2147483648, got {2**31}"
    yield GPTQ, 1, int32(2**28, 32), f"a.size(1): {rows}"
    yield SHUFFLE, 0, int32(2**28, 32), f"q_weight.size(0) * 32 / bit: {rows}"
    yield GPTQ, 6, 3, "b_q_weight.size(0): expected a multiple of 3, got 8"
    yield SHUFFLE, 2, 3, "q_weight.size(0): expected a multiple of 3, got 8"
    yield GPTQ, 1, int32(8, 33), "b_q_weight.size(1): expected a multiple of 8, got 33"
    yield GPTQ, 0, half(64), "a: expected 2-D [tokens, in], got 1-D [64]"
    yield GPTQ, 0, half(3, 63), "a.size(1): expected 64 (32 / bit * b_q_weight.size(0)), got 63"
    yield GPTQ, 0, half(2**31, 64), f"a.size(0): {rows}"
    yield GPTQ, 0, Tensor(3, 64), "a: expected float16 (activations), got bfloat16"
    yield GPTQ, 0, half(3, 64, device=ELSEWHERE), other_device("a", like_weight)
    yield GPTQ, 0, half(3, 64, strides=[128, 2]), "a.stride(-1): expected 1, got 2"
    yield GPTQ, 3, half(32), "b_gptq_scales: expected 2-D [groups, out], got 1-D [32]"
    yield GPTQ, 3, half(2, 31), "b_gptq_scales.size(1): expected 32 (b_q_weight.size(1)), got 31"
    yield GPTQ, 3, f32(2, 32), "b_gptq_scales: expected float16 (dtype of a), got float32"
    yield GPTQ, 2, int32(4), "b_gptq_qzeros: expected 2-D [groups, out * bit / 32], got 1-D [4]"
    yield GPTQ, 2, int32(1, 4), "b_gptq_qzeros.size(0): expected 2 (b_gptq_scales.size(0)), got 1"
    yield GPTQ, 2, int32(2, 5), "b_gptq_qzeros.size(1): expected 4 (b_q_weight.size(1) * bit / 32), got 5"
    yield GPTQ, 2, half(2, 4), "b_gptq_qzeros: expected int32 (packed zero points), got float16"
    yield GPTQ, 4, int32(64, 1), "b_g_idx: expected 1-D [in], or empty, got 2-D [64, 1]"
    yield GPTQ, 4, int32(63), "b_g_idx.size(0): expected 64 (input features), got 63"
    yield GPTQ, 4, half(64), "b_g_idx: expected int32 (indices), got float16"
    yield SHUFFLE, 1, int32(64, device=ELSEWHERE), other_device("q_perm", "device of q_weight")


def of_repacking() -> Iterator[Refusal]:
    for op in REPACKS:
        k, n, bits = (len(CALLS[op]) - back for back in (3, 2, 1))
        yield op, bits, 5, "num_bits: expected 4 or 8, got 5"
        yield op, k, 31, "size_k: expected a multiple of 16, got 31"
        yield op, k, -16, "size_k: expected a multiple of 16, got -16"
        yield op, n, 96, "size_n: expected a multiple of 64, got 96"
        yield op, k, 2**31, f"size_k: expected less than 2147483648, got {2**31}"
        yield op, n, 2**31, f"size_n: expected less than 2147483648, got {2**31}"
        sizes = CALLS[op][0].sizes
        yield op, 0, half(*sizes), "b_q_weight: expected int32 (packed weights), got float16"
        strides = [2 * stride for stride in CALLS[op][0].strides]
        yield op, 0, int32(*sizes, strides=strides), gaps("b_q_weight", *sizes)
    plain, moe, gptq = REPACKS
    size_n = "size_n * num_bits / 32"
    yield plain, 0, int32(32), f"b_q_weight: expected 2-D [size_k, {size_n}], got 1-D [32]"
    yield plain, 0, int32(31, 8), "b_q_weight.size(0): expected 32 (size_k), got 31"
    yield plain, 0, int32(32, 9), f"b_q_weight.size(1): expected 8 ({size_n}), got 9"
    yield moe, 0, int32(32, 8), f"b_q_weight: expected 3-D [experts, size_k, {size_n}], got 2-D [32, 8]"
    yield moe, 0, int32(2, 31, 8), "b_q_weight.size(1): expected 32 (size_k), got 31"
    yield moe, 0, int32(2, 32, 9), f"b_q_weight.size(2): expected 8 ({size_n}), got 9"
    size_k = "size_k * num_bits / 32"
    yield gptq, 0, int32(4), f"b_q_weight: expected 2-D [{size_k}, size_n], got 1-D [4]"
    yield gptq, 0, int32(5, 64), f"b_q_weight.size(0): expected 4 ({size_k}), got 5"
    yield gptq, 0, int32(4, 63), "b_q_weight.size(1): expected 64 (size_n), got 63"
    yield gptq, 1, int32(32, 1), "perm: expected 1-D [size_k], or empty, got 2-D [32, 1]"
    yield gptq, 1, int32(31), "perm.size(0): expected 32 (size_k), got 31"
    yield gptq, 1, half(32), "perm: expected int32 (indices), got float16"
    yield gptq, 1, int32(32, device=ELSEWHERE), other_device("perm", "device of b_q_weight")


def of_moe() -> Iterator[Refusal]:
    yield SOFTMAX, 2, f32(8), "gating_output: expected 2-D [tokens, experts], got 1-D [8]"
    yield SOFTMAX, 2, f32(4, 8, strides=[16, 2]), "gating_output.stride(-1): expected 1, got 2"
    yield (
        *(SOFTMAX, 2, f32(4, 2**30)),
        "gating_output.size(1): expected less than 1073741824, got 1073741824",
    )
    for at, name, make, dtype in ((0, "topk_weights", f32, "float32"), (1, "topk_indices", int32, "int32")):
        what = {"float32": "weights", "int32": "ids"}[dtype]
        yield SOFTMAX, at, make(4), f"{name}: expected 2-D [tokens, topk], got 1-D [4]"
        yield SOFTMAX, at, make(3, 2), f"{name}.size(0): expected 4 (gating_output.size(0)), got 3"
        yield SOFTMAX, at, half(4, 2), f"{name}: expected {dtype} ({what}), got float16"
        yield SOFTMAX, at, make(4, 2, device=ELSEWHERE), other_device(name, "device of gating_output")
        yield SOFTMAX, at, make(4, 2, strides=[4, 2]), f"{name}.stride(-1): expected 1, got 2"
    yield SOFTMAX, 1, int32(4, 3), "topk_indices.size(1): expected 2 (topk_weights.size(1)), got 3"
    yield GATE, 0, f32(64), "input: expected 2-D [tokens, experts], got 1-D [64]"
    yield GATE, 1, f32(1, 64), "bias: expected 1-D [experts], got 2-D [1, 64]"
    yield GATE, 1, f32(63), "bias.size(0): expected 64 (input.size(1)), got 63"
    yield GATE, 1, int32(64), "bias: expected bfloat16 or float16 or float32, got int32"
    yield GATE, 1, f32(64, device=ELSEWHERE), other_device("bias", "device of input")
    yield GATE, 1, f32(64, strides=[2]), "bias.stride(-1): expected 1, got 2"
    for at, name in ((3, "sorted_token_ids"), (4, "experts_ids"), (5, "num_tokens_post_pad")):
        yield ALIGN, at, int32(9, 1), f"{name}: expected 1-D [size], got 2-D [9, 1]"
        yield ALIGN, at, f32(9), f"{name}: expected int32 (indices), got float32"
        yield ALIGN, at, int32(9, device=ELSEWHERE), other_device(name, "device of topk_ids")
        yield ALIGN, at, int32(9, strides=[2]), f"{name}.stride(-1): expected 1, got 2"
        large = f"{name}.size(0): expected less than 1073741824, got 1073741824"
        yield ALIGN, at, int32(2**30), large
    yield ALIGN, 5, int32(0), "num_tokens_post_pad.size(0): expected at least 1, got 0"
    shape = f"[{INT_MAX // 8}, 8]"
    yield (
        *(ALIGN, 0, int32(INT_MAX // 8, 8)),
        f"topk_ids: expected less than 1073741824 elements with their padding, got {shape}",
    )


def of_the_rest() -> Iterator[Refusal]:
    for at, name in ((1, "s_a"), (3, "s_b"), (5, "s_merged")):
        yield MERGE, at, f32(3), f"{name}: expected 2-D [tokens, heads], got 1-D [3]"
        yield MERGE, at, f32(3, 5), f"{name}.size(1): expected 4 (that of v_a), got 5"
        yield MERGE, at, half(3, 4), f"{name}: expected float32 (a log-sum-exp), got float16"
        yield MERGE, at, f32(3, 4, device=ELSEWHERE), other_device(name, "device of v_a")
        yield MERGE, at, f32(3, 4, strides=[8, 1]), gaps(name, 3, 4)
    for at, name in ((2, "v_b"), (4, "v_merged")):
        yield MERGE, at, half(3, 4, 16), f"{name}: expected bfloat16 (dtype of v_a), got float16"
        yield MERGE, at, Tensor(3, 4, 16, strides=[128, 32, 1]), gaps(name, 3, 4, 16)

    like_logits = "device of logits"
    yield MASK, 1, int32(4, 2, device=ELSEWHERE), other_device("bitmask", like_logits)
    yield MASK, 1, int32(1, 4, 2), "bitmask: expected 1-D or 2-D [rows, words], got 3-D [1, 4, 2]"
    yield MASK, 1, int32(4, 2, strides=[4, 2]), "bitmask.stride(-1): expected 1, got 2"
    yield MASK, 2, int32(2, device=ELSEWHERE), other_device("indices", like_logits)
    yield MASK, 2, int32(2, strides=[2]), "indices.stride(-1): expected 1, got 2"
    yield MASK, 0, Tensor(4, 2**31), f"logits.size(-1): expected less than 2147483648, got {2**31}"

    for op, k, v, cache, loc, names in (
        (STORE, 3, 4, 0, 2, ("k_cache", "v_cache", "out_loc")),
        (DOWNCAST, 0, 1, 2, 6, ("k_out", "v_out", "loc")),
    ):
        make = Tensor if op == STORE else fp8
        k_name, v_name, loc_name = names
        yield op, k, Tensor(5), "k: expected [rows, ...], got 1-D [5]"
        yield op, v, Tensor(5), "v: expected [rows, ...], got 1-D [5]"
        yield op, v, Tensor(4, 32), "v.size(0): expected 5 (k.size(0)), got 4"
        yield op, v, Tensor(5, 32, device=ELSEWHERE), other_device("v", "device of k")
        yield op, cache, make(9), f"{k_name}: expected [rows, ...], got 1-D [9]"
        yield op, cache, make(9, 63), f"{k_name}: expected rows of 64 elements (those of k), got [9, 63]"
        yield op, cache + 1, make(9, 31), f"{v_name}: expected rows of 32 elements (those of v), got [9, 31]"
        yield op, cache, make(9, 64, device=ELSEWHERE), other_device(k_name, "device of the rows")
        yield op, loc, int32(5, 1), f"{loc_name}: expected 1-D [tokens], got 2-D [5, 1]"
        yield op, loc, int32(4), f"{loc_name}.size(0): expected 5 (k.size(0)), got 4"
        yield op, loc, half(5), f"{loc_name}: expected int32 or int64, got float16"
        yield op, loc, int32(5, device=ELSEWHERE), other_device(loc_name, "device of k")
        yield op, loc, int32(5, strides=[2]), f"{loc_name}.stride(-1): expected 1, got 2"
    yield STORE, 1, half(9, 32), "v_cache: expected bfloat16 (dtype of v), got float16"
    yield (
        *(STORE, 4, Tensor(5, 32, dtype="complex64")),
        "k, v: expected a dtype that this library knows, got another",
    )
    yield DOWNCAST, 1, half(5, 32), "v: expected bfloat16 (dtype of k), got float16"
    yield DOWNCAST, 3, half(9, 32), "v_out: expected float8_e4m3fn or uint8, got float16"
    for at, name in ((4, "k_scale"), (5, "v_scale")):
        yield DOWNCAST, at, half(1), f"{name}: expected float32 (a scale), got float16"
        yield DOWNCAST, at, f32(1, device=ELSEWHERE), other_device(name, "device of k")
        yield DOWNCAST, at, f32(2), f"{name}: expected one element, got [2]"


def of_several_arguments() -> Iterator[tuple[str, dict[int, Any], str]]:
    """What one argument alone cannot bring about."""
    yield (
        *(GPTQ, {2: int32(3, 4), 3: half(3, 32), 4: int32(0)}),
        "b_gptq_scales.size(0): expected a divisor of 64 (input features), got 3",
    )
    yield GPTQ, {0: half(3, 0), 1: int32(0, 32), 4: int32(0)}, "a.size(1): expected at least 1, got 0"
    no_width = {at: Tensor(3, 4, 0) for at in (0, 2, 4)}
    yield MERGE, no_width, "v_a.size(2): expected at least 1, got 0"
    wide = {at: Tensor(3, 4, 2**30) for at in (0, 2, 4)}
    yield MERGE, wide, "v_a.size(2): expected less than 1073741824, got 1073741824"
    wide = {0: Tensor(9, 2**28), 3: Tensor(5, 2**28)}
    yield STORE, wide, "k: expected rows below 268435456 elements, got 268435456"


REFUSED = [
    *((op, {at: value}, message) for op, at, value, message in of_packed_weights()),
    *((op, {at: value}, message) for op, at, value, message in of_repacking()),
    *((op, {at: value}, message) for op, at, value, message in of_moe()),
    *((op, {at: value}, message) for op, at, value, message in of_the_rest()),
    *of_several_arguments(),
]


@pytest.mark.parametrize("op", CALLS)
def test_the_sound_call(gpu: Any, op: str) -> None:
    gpu.torch.call(op, CALLS[op])
    assert gpu.driver.launches()


@pytest.mark.parametrize(
    ("op", "changes", "message"), REFUSED, ids=[f"{op}: {message}" for op, _, message in REFUSED]
)
def test_what_is_refused(native: Any, op: str, changes: dict[int, Any], message: str) -> None:
    values = [changes.get(at, value) for at, value in enumerate(CALLS[op])]
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'{op}: {message}')}$"):
        native.torch.call(op, values)
