"""The norm family: which kernel for which shape, what the launch carries, what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ._tensors import INT_MAX, NEAR_POWERS_OF_TWO, Tensor

ODD = 0x2002  # an address that no vector starts at
PLAIN = ["rmsnorm", "gemma_rmsnorm"]
FUSED = ["fused_add_rmsnorm", "gemma_fused_add_rmsnorm"]
OPS = PLAIN + FUSED
VECTOR = 8  # elements of 16 bytes
TOKENS = st.integers(0, 600) | st.integers(0, INT_MAX)
HIDDEN = (
    st.integers(1, 200_000)
    | st.integers(1, 25_000).map(lambda n: n * VECTOR)
    | st.sampled_from(NEAR_POWERS_OF_TWO)
    | st.sampled_from([VECTOR * n for n in NEAR_POWERS_OF_TWO])
)


def rows_per_block(shape: tuple[str, int, int, int, int], threads: int) -> int:
    return threads // shape[1] if shape[1] else 1


@settings(deadline=None, max_examples=500)
@given(tokens=TOKENS, hidden=HIDDEN, aligned=st.booleans())
def test_the_choice_is_enough_and_no_more(native: Any, tokens: int, hidden: int, aligned: bool) -> None:
    index, threads, blocks = native.norm.choose(tokens, hidden, aligned)
    name, lanes, width, accesses, max_threads = native.norm.shapes[index]
    assert threads % 32 == 0
    assert 32 <= threads <= max_threads
    rows = rows_per_block(native.norm.shapes[index], threads)
    assert blocks == -(-tokens // rows) <= INT_MAX
    if width == VECTOR:
        assert aligned
        assert hidden % VECTOR == 0
    if name == "any":
        assert threads == max_threads or threads - 32 < hidden
    else:
        spare = (lanes or threads) * accesses - hidden // width
        assert spare >= 0
        if lanes:  # no smaller kernel of this sort would do
            assert all(
                not other_lanes or other_lanes * other_accesses < hidden // width
                for _, other_lanes, _, other_accesses, _ in native.norm.shapes[:index]
            )
        else:  # not one warp too many
            assert spare < 32 * accesses
    assert native.torch.problems() == []


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(0, 12) | st.integers(250, 260),
    hidden=st.integers(1, 300) | st.integers(1, 520).map(lambda n: n * VECTOR),
    aligned=st.booleans(),
)
def test_every_element_is_covered_once(native: Any, tokens: int, hidden: int, aligned: bool) -> None:
    """The index arithmetic of csrc/kernels/norm.cu, thread by thread. A unit is a vector, or an element."""
    index, threads, blocks = native.norm.choose(tokens, hidden, aligned)
    name, lanes, width, accesses, _ = native.norm.shapes[index]
    units = hidden // width
    covered = [bytearray(units) for _ in range(tokens)]
    for block in range(blocks):
        for thread in range(threads):
            if name == "any":
                token, mine = block, range(thread, units, threads)
            elif lanes:
                token = block * (threads // lanes) + thread // lanes
                mine = range(thread % lanes, lanes * accesses, lanes)
            else:
                token, mine = block, range(thread, threads * accesses, threads)
            if token < tokens:
                for unit in mine:
                    if unit < units:
                        covered[token][unit] += 1
    assert all(row == b"\1" * units for row in covered)


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    """Arguments that lead to each kernel that the op can launch."""
    for dtype in ("float16", "bfloat16"):
        for tokens, hidden, aligned in one_of_each_shape(native).values():
            x = Tensor(tokens, hidden, dtype=dtype, address=0x1000 if aligned else ODD)
            yield values(op, tokens, hidden, dtype, input=x)


def one_of_each_shape(native: Any) -> dict[int, tuple[int, int, bool]]:
    """Shape → (tokens, hidden, aligned) that leads to it."""
    found: dict[int, tuple[int, int, bool]] = {}
    for tokens in (1, 300, 100_000):
        for hidden in [*range(8, 4096, 8), *range(4096, 80_000, 512)]:
            for aligned in (True, False):
                found.setdefault(native.norm.choose(tokens, hidden, aligned)[0], (tokens, hidden, aligned))
    return found


def test_every_shape_is_chosen_for_something(native: Any) -> None:
    assert sorted(one_of_each_shape(native)) == list(range(len(native.norm.shapes)))


def values(op: str, tokens: int = 4, hidden: int = 64, dtype: str = "bfloat16", **changed: Any) -> list[Any]:
    """The arguments of `op`, with the named ones replaced."""
    arguments: dict[str, Any] = {} if op in FUSED else {"output": Tensor(tokens, hidden, dtype=dtype)}
    arguments["input"] = Tensor(tokens, hidden, dtype=dtype)
    if op in FUSED:
        arguments["residual"] = Tensor(tokens, hidden, dtype=dtype)
    arguments |= {"weight": Tensor(hidden, dtype=dtype), "eps": 1e-6, "enable_pdl": False}
    assert set(changed) <= set(arguments)
    return list((arguments | changed).values())


SAME_ROWS = [
    ({"x": Tensor(4)}, "{x}: expected 2-D [tokens, hidden], got 1-D [4]"),
    ({"x": Tensor(5, 64)}, "{x}.size(0): expected 4 (input.size(0)), got 5"),
    ({"x": Tensor(4, 63)}, "{x}.size(1): expected 64 (input.size(1)), got 63"),
    ({"x": Tensor(4, 64, dtype="float16")}, "{x}: expected bfloat16 (dtype of input), got float16"),
    (
        {"x": Tensor(4, 64, device="cuda:1")},
        "{x}: expected a tensor on cuda:0 (device of input), got one on cuda:1",
    ),
    ({"x": Tensor(4, 64, strides=[256, 4])}, "{x}.stride(-1): expected 1, got 4"),
]
OF_ALL = [
    ({"input": Tensor(64)}, "input: expected 2-D [tokens, hidden], got 1-D [64]"),
    ({"input": Tensor(4, 64, dtype="float32")}, "input: expected float16 or bfloat16, got float32"),
    ({"input": Tensor(4, 64, strides=[128, 2])}, "input.stride(-1): expected 1, got 2"),
    ({"weight": Tensor(1, 64)}, "weight: expected 1-D [hidden], got 2-D [1, 64]"),
    ({"weight": Tensor(65)}, "weight.size(0): expected 64 (input.size(1)), got 65"),
    ({"weight": Tensor(64, dtype="float16")}, "weight: expected bfloat16 (dtype of input), got float16"),
    (
        {"weight": Tensor(64, device="cpu")},
        "weight: expected a tensor on cuda:0 (device of input), got one on cpu",
    ),
    ({"weight": Tensor(64, strides=[2])}, "weight.stride(-1): expected 1, got 2"),
    ({"tokens": 2**31}, "input: expected sizes below 2147483648, got [2147483648, 64]"),
    ({"hidden": 2**31}, "input: expected sizes below 2147483648, got [4, 2147483648]"),
]


def refusals() -> list[Any]:
    cases = [(op, changed, message) for op in OPS for changed, message in OF_ALL]
    for ops, other in ((PLAIN, "output"), (FUSED, "residual")):
        for op in ops:
            cases += [(op, {other: change["x"]}, text.format(x=other)) for change, text in SAME_ROWS]
    return [pytest.param(op, changed, f"{op}: {text}", id=f"{op}: {text}") for op, changed, text in cases]


@pytest.mark.parametrize(("op", "changed", "message"), refusals())
def test_what_is_refused(native: Any, op: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        native.torch.call(op, values(op, **changed))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("tokens", "hidden"), [(0, 64), (4, 0), (0, 0)])
def test_nothing_to_do_needs_no_driver(native: Any, op: str, tokens: int, hidden: int) -> None:
    native.torch.call(op, values(op, tokens, hidden))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_shape_is_launched(gpu: Any, op: str, dtype: str) -> None:
    stem = "fused_add_rmsnorm" if op in FUSED else "rmsnorm"
    for shape, (tokens, hidden, aligned) in one_of_each_shape(gpu).items():
        x = Tensor(tokens, hidden, dtype=dtype, address=0x1000 if aligned else ODD)
        gpu.torch.call(op, values(op, tokens, hidden, dtype, input=x))
        (launch,) = gpu.driver.launches()
        _, threads, blocks = gpu.norm.choose(tokens, hidden, aligned)
        kind = {"float16": "f16", "bfloat16": "bf16"}[dtype]
        assert launch["kernel"] == f"{stem}_{kind}_{gpu.norm.shapes[shape][0]}"
        assert (launch["grid"], launch["block"]) == ((blocks, 1, 1), (threads, 1, 1))
        assert (launch["shared_bytes"], launch["cluster"]) == (0, (1, 1, 1))
        params = launch["params"]
        assert (params["tokens"], params["hidden"]) == (tokens, hidden)


def test_what_a_plain_launch_carries(gpu: Any) -> None:
    output = Tensor(4, 64, strides=[80, 1], address=0x1000)
    x = Tensor(4, 64, strides=[72, 1], address=0x2000)
    for op, bias in (("rmsnorm", 0.0), ("gemma_rmsnorm", 1.0)):
        gpu.torch.call(op, [output, x, Tensor(64, address=0x3000), 0.5, True])
        (launch,) = gpu.driver.launches()
        assert launch["is_pdl"]
        assert launch["params"] == {
            "output": 0x1000,
            "input": 0x2000,
            "residual": 0,
            "weight": 0x3000,
            "output_stride": 80,
            "input_stride": 72,
            "residual_stride": 0,
            "tokens": 4,
            "hidden": 64,
            "eps": 0.5,
            "weight_bias": bias,
        }


def test_what_a_fused_launch_carries(gpu: Any) -> None:
    x = Tensor(4, 64, strides=[72, 1], address=0x2000)
    residual = Tensor(4, 64, strides=[2**40, 1], address=0x4000)
    for op, bias in (("fused_add_rmsnorm", 0.0), ("gemma_fused_add_rmsnorm", 1.0)):
        gpu.torch.call(op, [x, residual, Tensor(64, address=0x3000), 1e-5, False])
        (launch,) = gpu.driver.launches()
        assert not launch["is_pdl"]
        eps = launch["params"].pop("eps")
        assert math.isclose(eps, 1e-5, rel_tol=1e-7)
        assert launch["params"] == {
            "output": 0x2000,
            "input": 0x2000,
            "residual": 0x4000,
            "weight": 0x3000,
            "output_stride": 72,
            "input_stride": 72,
            "residual_stride": 2**40,
            "tokens": 4,
            "hidden": 64,
            "weight_bias": bias,
        }


@pytest.mark.parametrize(
    "changed",
    [
        {"output": Tensor(4, 64, address=ODD)},
        {"input": Tensor(4, 64, address=ODD)},
        {"weight": Tensor(64, address=ODD)},
        {"output": Tensor(4, 64, strides=[65, 1])},
        {"input": Tensor(4, 64, strides=[68, 1])},
        {"hidden": 63},
    ],
    ids=str,
)
def test_unaligned_rows_go_element_by_element(gpu: Any, changed: dict[str, Any]) -> None:
    gpu.torch.call("rmsnorm", values("rmsnorm", **changed))
    (launch,) = gpu.driver.launches()
    assert launch["kernel"] == "rmsnorm_bf16_element_8"


@pytest.mark.parametrize("residual", [Tensor(4, 64, address=ODD), Tensor(4, 64, strides=[65, 1])], ids=str)
def test_an_unaligned_residual_too(gpu: Any, residual: Tensor) -> None:
    gpu.torch.call("fused_add_rmsnorm", values("fused_add_rmsnorm", residual=residual))
    (launch,) = gpu.driver.launches()
    assert launch["kernel"] == "fused_add_rmsnorm_bf16_element_8"


def test_the_stride_of_an_only_row_is_not_read(gpu: Any) -> None:
    row = Tensor(1, 64, strides=[3, 1])
    gpu.torch.call("rmsnorm", [row, row, Tensor(64), 1e-6, False])
    (launch,) = gpu.driver.launches()
    assert launch["kernel"] == "rmsnorm_bf16_rows_8x1"
    assert launch["params"]["input_stride"] == launch["params"]["output_stride"] == 64
