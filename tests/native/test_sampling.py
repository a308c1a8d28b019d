"""The sampling family: how a row is shared, what the launches carry, what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ._tensors import INT_MAX, Tensor

FILTERS = ["top_k_renorm_probs", "top_p_renorm_probs", "top_k_mask_logits"]
SAMPLERS = ["top_p_sampling_from_probs", "top_k_top_p_sampling_from_probs", "min_p_sampling_from_probs"]
OPS = FILTERS + SAMPLERS
WARPS = 16
SCRATCH = 0x100000  # where the fake torch places what an op allocates
STATE_BYTES = 64


@settings(deadline=None, max_examples=500)
@given(
    rows=st.integers(1, 2000) | st.integers(1, INT_MAX),
    vocabulary=st.integers(1, 3000) | st.integers(1, 300_000) | st.integers(1, INT_MAX),
    aligned=st.booleans(),
    multiprocessors=st.integers(1, 200),
)
def test_segments_cover_the_row(
    native: Any, rows: int, vocabulary: int, aligned: bool, multiprocessors: int
) -> None:
    shape, chunks, segment, capacity, fraction_bits = native.sampling.choose(
        rows, vocabulary, aligned, multiprocessors
    )
    assert native.sampling.shapes[shape][0] == ("vector" if aligned else "element")
    assert 1 <= chunks <= 64
    assert chunks == 1 or rows * chunks <= 4 * multiprocessors
    assert segment % 128 == 0
    assert (chunks - 1) * WARPS * segment < vocabulary <= chunks * WARPS * segment
    assert capacity == min(vocabulary, 16384)
    assert 0 <= fraction_bits <= 20
    assert vocabulary * 2 ** (24 + fraction_bits) <= 2**62
    assert native.torch.problems() == []


@pytest.mark.parametrize(("rows", "chunks"), [(1, 38), (16, 25), (128, 4), (989, 1)])
def test_how_an_h200_shares_the_rows_of_qwen3(native: Any, rows: int, chunks: int) -> None:
    assert native.sampling.choose(rows, 151936, True, 132)[1] == chunks


def values(op: str, rows: int = 4, vocabulary: int = 64, **changed: Any) -> list[Any]:
    """The arguments of `op`, with the named ones replaced."""
    arguments: dict[str, Any] = {"input": Tensor(rows, vocabulary, dtype="float32")}
    if op in FILTERS:
        arguments["output"] = Tensor(rows, vocabulary, dtype="float32")
    else:
        arguments["output"] = Tensor(rows, dtype="int32")
        arguments["indices"] = None
    if "top_k" in op:
        arguments["top_k"] = None
        arguments["k"] = 5 if op in FILTERS else 5.0
    if "top_p" in op or "min_p" in op:
        arguments["limit"] = None
        arguments["p"] = 0.5
    if op in SAMPLERS:
        arguments |= {"deterministic": True, "seed": 7, "offset": 12}
    assert changed.keys() <= arguments.keys()
    return list((arguments | changed).values())


def every_call(native: Any, op: str) -> Iterator[list[Any]]:
    """Arguments that lead to each kernel that the op can launch."""
    del native
    for vocabulary in (64, 63):
        yield values(op, 4, vocabulary)


def steps(op: str) -> list[str]:
    search = "maximum" if "min_p" in op else "histogram"
    return ["clear", search, "select", *(["apply"] if op in FILTERS else [])]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("vocabulary", "shape"), [(151936, "vector"), (32000, "vector"), (111, "element")])
def test_what_is_launched(gpu: Any, op: str, vocabulary: int, shape: str) -> None:
    gpu.torch.call(op, values(op, 16, vocabulary))
    launches = gpu.driver.launches()
    assert [launch["kernel"] for launch in launches] == [f"sampling_{s}_f32_{shape}" for s in steps(op)]
    _, chunks, segment, capacity, fraction_bits = gpu.sampling.choose(16, vocabulary, shape == "vector", 132)
    for launch in launches:
        assert launch["block"] == (gpu.sampling.threads, 1, 1)
        assert launch["is_pdl"]
        assert launch["params"] == launches[0]["params"]
    assert {launch["grid"] for launch in launches[1:]} == {(16 * chunks, 1, 1)}
    params = launches[0]["params"]
    expected = (chunks, segment, capacity, fraction_bits)
    assert tuple(params[x] for x in ("chunks", "segment", "capacity", "fraction_bits")) == expected
    assert (params["rows"], params["input_rows"], params["vocabulary"]) == (16, 16, vocabulary)
    assert params["is_logits"] == (op == "top_k_mask_logits")


@pytest.mark.parametrize("op", OPS)
def test_scratch_does_not_overlap_and_what_is_cleared_comes_first(gpu: Any, op: str) -> None:
    rows = 3
    gpu.torch.call(op, values(op, rows, 5000))
    params = gpu.driver.launches()[0]["params"]
    assert params["states"] == SCRATCH
    end = SCRATCH + rows * STATE_BYTES
    for name, size, has in (
        ("counts", rows * 2048 * 4, "top_k" in op),
        ("masses", rows * 2048 * 8, "top_p" in op),
    ):
        assert params[name] == (end if has else 0)
        end += size * has
    assert params["clear_vectors"] * 16 == end - SCRATCH
    assert params["segments"] == end
    end += rows * params["chunks"] * WARPS * 8 * (op in SAMPLERS)
    assert params["candidates"] == end


@pytest.mark.parametrize("op", OPS)
def test_a_row_of_one_block_needs_no_histogram(gpu: Any, op: str) -> None:
    gpu.torch.call(op, values(op, 1000, 5000))
    params = gpu.driver.launches()[0]["params"]
    assert params["chunks"] == 1
    assert params["clear_vectors"] * 16 == 1000 * STATE_BYTES
    assert bool(params["counts"]) == ("top_k" in op)
    assert bool(params["masses"]) == ("top_p" in op)


def test_what_a_sampler_carries(gpu: Any) -> None:
    op = "top_k_top_p_sampling_from_probs"
    top_k, top_p = Tensor(4, dtype="int32", address=0x3000), Tensor(4, dtype="float32", address=0x4000)
    indices, output = Tensor(6, dtype="int32", address=0x5000), Tensor(6, dtype="int32", address=0x6000)
    x = Tensor(4, 64, dtype="float32", strides=[80, 1], address=0x1000)
    gpu.torch.call(op, values(op, input=x, indices=indices, output=output, top_k=top_k, limit=top_p))
    params = gpu.driver.launches()[-1]["params"]
    assert params["input"] == 0x1000
    assert (params["top_k"], params["limit"], params["indices"]) == (0x3000, 0x4000, 0x5000)
    assert (params["tokens"], params["output"]) == (0x6000, 0)
    assert (params["seed"], params["offset"]) == (7, 12)
    assert (params["rows"], params["input_rows"], params["input_stride"]) == (6, 4, 80)
    assert (params["top_k_value"], params["limit_value"]) == (5, 0.5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(-3.0, 1), (0.0, 1), (float(2**30), 2**30), (1e30, INT_MAX), (float("nan"), 1), (float("inf"), INT_MAX)],
)
def test_top_k_stays_in_range(gpu: Any, value: float, expected: int) -> None:
    op = "top_k_top_p_sampling_from_probs"
    gpu.torch.call(op, values(op, k=value))
    assert gpu.driver.launches()[0]["params"]["top_k_value"] == expected


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "x",
    [Tensor(4, 64, dtype="float32", address=0x1004), Tensor(4, 64, dtype="float32", strides=[65, 1])],
    ids=str,
)
def test_unaligned_rows_go_element_by_element(gpu: Any, op: str, x: Tensor) -> None:
    gpu.torch.call(op, values(op, input=x))
    assert {launch["kernel"].rpartition("_")[2] for launch in gpu.driver.launches()} == {"element"}


@pytest.mark.parametrize("op", OPS)
def test_nothing_to_do_needs_no_driver(native: Any, op: str) -> None:
    native.torch.call(op, values(op, 0, 64))
    if op in FILTERS:
        native.torch.call(op, values(op, 4, 0))


def refusals() -> Iterator[tuple[str, dict[str, Any], str]]:
    f32 = "float32"
    for op in OPS:
        name = "logits" if "logits" in op else "probs"
        yield op, {"input": Tensor(4, dtype=f32)}, f"{name}: expected 2-D [batch, vocabulary], got 1-D [4]"
        yield op, {"input": Tensor(4, 64)}, f"{name}: expected float32 (for this argument), got bfloat16"
        yield (
            op,
            {"input": Tensor(4, 64, dtype=f32, strides=[128, 2])},
            f"{name}.stride(-1): expected 1, got 2",
        )
        yield (
            op,
            {"input": Tensor(2**25, 64, dtype=f32)},
            f"{name}: expected at most 33554431 rows of at most 2147483647, got [33554432, 64]",
        )
        if "top_k" in op:
            yield (
                op,
                {"top_k": Tensor(4, dtype="int64")},
                "maybe_top_k_arr: expected int32 (for this argument), got int64",
            )
            yield (
                op,
                {"top_k": Tensor(5, dtype="int32")},
                "maybe_top_k_arr.size(0): expected 4 (rows of the input), got 5",
            )
        if "p" in (limit := "min_p" if "min_p" in op else "top_p") and limit in op:
            yield (
                op,
                {"limit": Tensor(4, 1, dtype=f32)},
                f"maybe_{limit}_arr: expected 1-D [batch], got 2-D [4, 1]",
            )
    for op in FILTERS:
        yield (
            op,
            {"output": Tensor(3, 64, dtype=f32)},
            "output.size(0): expected 4 (rows of the input), got 3",
        )
        yield (
            op,
            {"output": Tensor(4, 63, dtype=f32)},
            "output.size(1): expected 64 (size of the input's rows), got 63",
        )
        yield op, {"output": Tensor(4, 64)}, "output: expected float32 (for this argument), got bfloat16"
        yield (
            op,
            {"output": Tensor(4, 64, dtype=f32, device="cuda:1")},
            "output: expected a tensor on cuda:0 (device of the input), got one on cuda:1",
        )
        yield op, {"output": Tensor(4, dtype=f32)}, "output: expected 2-D [batch, vocabulary], got 1-D [4]"
        yield (
            op,
            {"output": Tensor(4, 64, dtype=f32, strides=[128, 2])},
            "output.stride(-1): expected 1, got 2",
        )
    for op in SAMPLERS:
        yield (
            op,
            {"output": Tensor(5, dtype="int32")},
            "output.size(0): expected 4 (rows of the input), got 5",
        )
        yield (
            op,
            {"output": Tensor(4, dtype="int32", device="cuda:1")},
            "output: expected a tensor on cuda:0 (device of the input), got one on cuda:1",
        )
        yield op, {"output": Tensor(4, 1, dtype="int32")}, "output: expected 1-D [batch], got 2-D [4, 1]"
        yield op, {"input": Tensor(4, 0, dtype=f32)}, "probs.size(1): expected at least 1, got 0"
        yield (
            op,
            {"input": Tensor(0, 64, dtype=f32), "indices": Tensor(4, dtype="int32")},
            "probs.size(0): expected at least 1, got 0",
        )
        yield (
            op,
            {"indices": Tensor(3, dtype="int32")},
            "maybe_indices.size(0): expected 4 (output.size(0)), got 3",
        )


@pytest.mark.parametrize(("op", "changed", "message"), list(refusals()))
def test_what_is_refused(native: Any, op: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'{op}: {message}')}$"):
        native.torch.call(op, values(op, **changed))
