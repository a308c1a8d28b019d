"""The memory plan: known sizes, and what must hold for any model, settings and GPU."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from conftest import QWEN3_32B_AWQ
from hypothesis import given
from hypothesis import strategies as st
from sgl_kernel_rebuild.deploy.memory import GIB, MIB, ModelShape, Settings, make_plan, parse_size
from sgl_kernel_rebuild.errors import DeployError

QWEN = ModelShape.from_config(QWEN3_32B_AWQ)
RTX_5090 = 32607 * MIB

shapes = st.builds(
    ModelShape,
    layers=st.integers(1, 128),
    hidden=st.sampled_from([512, 1024, 4096, 5120, 8192]),
    intermediate=st.sampled_from([1024, 14336, 25600]),
    heads=st.sampled_from([8, 32, 64]),
    kv_heads=st.sampled_from([1, 4, 8]),
    head_dim=st.sampled_from([64, 128]),
    vocabulary=st.sampled_from([1000, 32000, 151936]),
    max_positions=st.sampled_from([2048, 40960]),
    is_tied=st.booleans(),
    bits=st.sampled_from([4, 8, 16]),
    experts=st.sampled_from([1, 8]),
)
settings = st.builds(
    Settings,
    mem_fraction_static=st.floats(0.05, 0.99).map(lambda value: round(value, 3)),
    context_length=st.integers(1, 200_000),
    max_total_tokens=st.none() | st.integers(1, 500_000),
    kv_dtype=st.sampled_from(["auto", "fp8_e5m2"]),
    chunked_prefill_size=st.sampled_from([512, 2048, 8192]),
    max_batch=st.sampled_from([1, 8, 160]),
    has_graphs=st.booleans(),
    has_compile=st.booleans(),
)
memories = st.integers(1 * GIB, 200 * GIB)


def test_qwen3_32b_awq_has_the_known_sizes():
    # 64 layers of 487.6 million weights at 4 bits, scales and zero points, two embeddings of 1.56 GB.
    assert 19.2e9 < QWEN.weight_bytes < 19.5e9
    assert QWEN.kv_bytes_per_token("fp8_e5m2") == 128 * 1024
    assert QWEN.kv_bytes_per_token("auto") == 256 * 1024


def test_a_model_without_quantization():
    plain = {**QWEN3_32B_AWQ, "quantization_config": None}
    assert 65e9 < ModelShape.from_config(plain).weight_bytes < 66e9


def test_the_user_s_profile_fits_a_5090_but_not_24_gib():
    wanted = Settings(mem_fraction_static=0.85, kv_dtype="fp8_e5m2", has_compile=True)
    assert make_plan(QWEN, wanted, RTX_5090).fits
    plan = make_plan(QWEN, wanted, 23 * GIB)
    assert not plan.fits
    assert plan.advice.startswith("The nearest setting that fits: --mem-fraction-static 0.9")
    assert "--context-length" in plan.advice


def test_without_quantization_no_setting_fits():
    plan = make_plan(dataclasses.replace(QWEN, bits=16), Settings(), RTX_5090)
    assert plan.problem.startswith("the weights take 61.")
    assert plan.nearest is None
    assert "No setting fits" in plan.advice


@given(shapes, settings, memories)
def test_the_rows_add_up(shape, wanted, memory):
    plan = make_plan(shape, wanted, memory)
    assert sum(size for _, size, _ in plan.rows) == memory


@given(shapes, settings, memories)
def test_what_is_advised_fits(shape, wanted, memory):
    plan = make_plan(shape, wanted, memory)
    if plan.nearest is not None:
        again = make_plan(shape, plan.nearest, memory)
        assert again.fits, (plan.advice, again.problem)
        assert plan.nearest != wanted
        assert plan.nearest.needed_tokens <= wanted.needed_tokens


@given(shapes, settings, memories)
def test_a_plan_that_fits_holds_what_was_asked_for(shape, wanted, memory):
    plan = make_plan(shape, wanted, memory)
    if plan.fits:
        assert plan.tokens >= min(wanted.needed_tokens, plan.tokens)
        assert plan.tokens >= wanted.needed_tokens or wanted.max_total_tokens is not None
        assert {what: size for what, size, _ in plan.rows}["left free"] >= 0


@given(shapes, settings, memories, st.integers(0, 100 * GIB))
def test_more_memory_never_holds_fewer_tokens(shape, wanted, memory, more):
    assert make_plan(shape, wanted, memory + more).tokens >= make_plan(shape, wanted, memory).tokens


@given(shapes, settings, memories)
def test_advice_is_given_only_where_something_fails(shape, wanted, memory):
    plan = make_plan(shape, wanted, memory)
    assert bool(plan.advice) != plan.fits


values = st.none() | st.integers() | st.text(max_size=4) | st.booleans()


@given(st.dictionaries(st.sampled_from(list(QWEN3_32B_AWQ)), values))
def test_any_config_is_read_or_refused(changes):
    with contextlib.suppress(DeployError):
        ModelShape.from_config({**QWEN3_32B_AWQ, **changes})


def test_latent_attention_is_refused():
    with pytest.raises(DeployError, match="kv_lora_rank: expected none"):
        ModelShape.from_config({**QWEN3_32B_AWQ, "kv_lora_rank": 512})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mem-fraction-static", 1.0),
        ("mem-fraction-static", "0.8"),
        ("context-length", 0),
        ("max-total-tokens", -1),
        ("chunked-prefill-size", True),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(DeployError, match=f"plan: {name}: expected"):
        Settings.from_options({name: value}, QWEN)


def test_an_unknown_cache_dtype_is_named():
    with pytest.raises(DeployError, match="kv-cache-dtype: expected one of"):
        QWEN.kv_bytes_per_token("int3")


@pytest.mark.parametrize(
    ("text", "size"), [("32GiB", 32 * GIB), ("1G", GIB), ("32607MiB", RTX_5090), ("7", 7)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "many", "1X", "nan", "infG"])
def test_no_size(text):
    with pytest.raises(DeployError, match="size: expected a number"):
        parse_size(text)
