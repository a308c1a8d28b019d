from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sgl_kernel
import torch
from torch import Tensor

SIZES = ((16, 64), (32, 128), (48, 192))
ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
OPS = ("awq_marlin_repack", "awq_marlin_moe_repack", "gptq_marlin_repack")


def word(fields: list[int], bits: int) -> int:
    """Fields from the lowest bits up, as a signed 32-bit integer."""
    value = sum(field << (bits * t) for t, field in enumerate(fields))
    return value - 2**32 if value >= 2**31 else value


def pack_awq(q: Tensor, bits: int) -> Tensor:
    rows, per_word = q.tolist(), 32 // bits
    return torch.tensor(
        [
            [word([row[w + o] for o in ORDER[bits]], bits) for w in range(0, len(row), per_word)]
            for row in rows
        ],
        dtype=torch.int32,
    )


def pack_gptq(q: Tensor, bits: int) -> Tensor:
    columns, per_word = q.t().tolist(), 32 // bits
    return torch.tensor(
        [
            [word(column[w : w + per_word], bits) for w in range(0, len(column), per_word)]
            for column in columns
        ],
        dtype=torch.int32,
    ).t()


def marlin(q: Tensor, bits: int) -> Tensor:
    """Word by word, as the module's docstring defines it."""
    size_k, size_n = q.shape
    values = q.tolist()
    out = []
    for first_row in range(0, size_k, 16):
        words = [0] * (size_n * bits // 2)
        for block in range(size_n // 64):
            for lane in range(32):
                for j in range(4):
                    r, c = first_row + 2 * (lane % 4), 64 * block + 16 * j + lane // 4
                    x = [values[row][column] for column in (c, c + 8) for row in (r, r + 1, r + 8, r + 9)]
                    if bits == 4:
                        words[128 * block + 4 * lane + j] = word([x[o] for o in ORDER[4]], 4)
                    else:
                        at = 256 * block + 8 * lane + 2 * j
                        words[at] = word([x[o] for o in ORDER[8]], 8)
                        words[at + 1] = word([x[4 + o] for o in ORDER[8]], 8)
        out.append(words)
    return torch.tensor(out, dtype=torch.int32)


def no_perm() -> Tensor:
    return torch.empty(0, dtype=torch.int32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("size_k", "size_n"), SIZES)
def test_awq(size_k: int, size_n: int, bits: int) -> None:
    q = torch.randint(2**bits, (size_k, size_n))
    out = sgl_kernel.awq_marlin_repack(pack_awq(q, bits), size_k, size_n, bits)
    assert out.is_contiguous()
    assert torch.equal(out, marlin(q, bits))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("is_permuted", [False, True])
@pytest.mark.parametrize(("size_k", "size_n"), SIZES)
def test_gptq(size_k: int, size_n: int, is_permuted: bool, bits: int) -> None:
    q = torch.randint(2**bits, (size_k, size_n))
    perm = torch.randperm(size_k).int() if is_permuted else no_perm()
    packed = pack_gptq(q, bits).contiguous()
    out = sgl_kernel.gptq_marlin_repack(packed, perm, size_k, size_n, bits)
    assert torch.equal(out, marlin(q[perm.long()] if is_permuted else q, bits))


@pytest.mark.parametrize("bits", [4, 8])
def test_every_expert(bits: int) -> None:
    q = torch.randint(2**bits, (3, 32, 64))
    packed = torch.stack([pack_awq(expert, bits) for expert in q])
    perm = torch.empty(3, 0, dtype=torch.int32)
    out = sgl_kernel.awq_marlin_moe_repack(packed, perm, 32, 64, bits)
    assert torch.equal(out, torch.stack([marlin(expert, bits) for expert in q]))


def arguments(op: str, bits: int = 4) -> list[Any]:
    if op == "awq_marlin_repack":
        return [torch.zeros(32, 64 * bits // 32, dtype=torch.int32), 32, 64, bits]
    if op == "gptq_marlin_repack":
        return [torch.zeros(32 * bits // 32, 64, dtype=torch.int32), no_perm(), 32, 64, bits]
    weights = torch.zeros(2, 32, 64 * bits // 32, dtype=torch.int32)
    return [weights, torch.empty(2, 0, dtype=torch.int32), 32, 64, bits]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bits", [4, 8])
def test_opcheck(op: str, bits: int) -> None:
    torch.library.opcheck(getattr(torch.ops.sgl_kernel, op).default, tuple(arguments(op, bits)))


@pytest.mark.parametrize("op", OPS)
def test_empty(op: str) -> None:
    values = arguments(op)
    values[-3:] = [0, 64, 4]
    shape = list(values[0].shape)
    shape[-2] = 0
    values[0] = torch.zeros(shape, dtype=torch.int32)
    assert getattr(sgl_kernel, op)(*values).shape[-2:] == (0, 128)


@pytest.mark.parametrize("op", OPS)
def test_one_graph(op: str, compile_whole: Callable[..., Any]) -> None:
    function = getattr(sgl_kernel, op)
    weight, *rest = arguments(op)
    assert torch.equal(compile_whole(lambda x: function(x, *rest) + 1)(weight), function(weight, *rest) + 1)


def changed(op: str, **changes: Any) -> list[Any]:
    values = arguments(op)
    names = ["weight", *["perm"] * (op != "awq_marlin_repack"), "size_k", "size_n", "num_bits"]
    for name, value in changes.items():
        values[names.index(name)] = value
    return values


def words(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


AWQ, MOE, GPTQ = OPS
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "bits": (AWQ, {"num_bits": 3}, "num_bits: expected 4 or 8, got 3"),
    "rows": (AWQ, {"size_k": 24}, "size_k: expected a multiple of 16, got 24"),
    "negative": (GPTQ, {"size_k": -16}, "size_k: expected a multiple of 16, got -16"),
    "columns": (MOE, {"size_n": 96}, "size_n: expected a multiple of 64, got 96"),
    "many rows": (AWQ, {"size_k": 2**31}, "size_k: expected less than 2147483648, got 2147483648"),
    "many columns": (AWQ, {"size_n": 2**31}, "size_n: expected less than 2147483648, got 2147483648"),
    "awq dim": (
        AWQ,
        {"weight": words(1, 32, 8)},
        "b_q_weight: expected 2-D [size_k, size_n * num_bits / 32], got 3-D [1, 32, 8]",
    ),
    "moe dim": (
        MOE,
        {"weight": words(32, 8)},
        "b_q_weight: expected 3-D [experts, size_k, size_n * num_bits / 32], got 2-D [32, 8]",
    ),
    "gptq dim": (
        GPTQ,
        {"weight": words(1, 4, 64)},
        "b_q_weight: expected 2-D [size_k * num_bits / 32, size_n], got 3-D [1, 4, 64]",
    ),
    "awq rows": (AWQ, {"weight": words(16, 8)}, "b_q_weight.size(0): expected 32 (size_k), got 16"),
    "awq columns": (
        AWQ,
        {"weight": words(32, 16)},
        "b_q_weight.size(1): expected 8 (size_n * num_bits / 32), got 16",
    ),
    "moe rows": (MOE, {"weight": words(2, 16, 8)}, "b_q_weight.size(1): expected 32 (size_k), got 16"),
    "moe columns": (
        MOE,
        {"weight": words(2, 32, 16)},
        "b_q_weight.size(2): expected 8 (size_n * num_bits / 32), got 16",
    ),
    "gptq rows": (
        GPTQ,
        {"weight": words(8, 64)},
        "b_q_weight.size(0): expected 4 (size_k * num_bits / 32), got 8",
    ),
    "gptq columns": (GPTQ, {"weight": words(4, 128)}, "b_q_weight.size(1): expected 64 (size_n), got 128"),
    **{
        f"{op} dtype": (
            op,
            {"weight": arguments(op)[0].long()},
            "b_q_weight: expected int32 (packed weights), got int64",
        )
        for op in OPS
    },
    "strides": (
        AWQ,
        {"weight": words(8, 32).t()},
        "b_q_weight: expected a contiguous tensor, got stride 32 of dimension 1",
    ),
    "perm dim": (GPTQ, {"perm": words(1, 32)}, "perm: expected 1-D [size_k], or empty, got 2-D [1, 32]"),
    "perm size": (GPTQ, {"perm": words(16)}, "perm.size(0): expected 32 (size_k), got 16"),
    "perm dtype": (GPTQ, {"perm": words(32).long()}, "perm: expected int32 (indices), got int64"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str, device: str) -> None:
    op, changes, message = BAD[case]
    values = [
        value.to(device) if isinstance(value, Tensor) and value.is_contiguous() else value
        for value in changed(op, **changes)
    ]
    if device == "meta" and case == "strides":
        values[0] = torch.empty_strided((32, 8), (1, 32), dtype=torch.int32, device=device)
    with pytest.raises(RuntimeError) as failure:
        getattr(torch.ops.sgl_kernel, op)(*values)
    assert str(failure.value) == f"{op}: {message}"


def test_bad_device() -> None:
    with pytest.raises(RuntimeError) as failure:
        sgl_kernel.gptq_marlin_repack(words(4, 64).to("meta"), words(32), 32, 64, 4)
    expected = "perm: expected a tensor on meta (device of b_q_weight), got one on cpu"
    assert str(failure.value) == f"gptq_marlin_repack: {expected}"
