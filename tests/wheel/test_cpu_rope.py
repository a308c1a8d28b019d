from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sgl_kernel
import torch
from sgl_kernel import FusedSetKVBufferArg
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
# (head_size, rotary_dim)
HEADS = ((64, 64), (128, 64), (256, 128), (80, 80), (7, 6), (111, 2))
MAX_POSITION = 512
OP = "apply_rope_pos_ids_cos_sin_cache"
STYLES = pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])


def id_of(value: object) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def make_cache(rotary_dim: int) -> Tensor:
    frequencies = 10000.0 ** -(torch.arange(rotary_dim // 2).double() / (rotary_dim // 2))
    angles = torch.outer(torch.arange(MAX_POSITION).double(), frequencies)
    return torch.cat((angles.cos(), angles.sin()), -1).float()


def make_positions(tokens: int) -> Tensor:
    return torch.randint(MAX_POSITION, (tokens,))


def heads(tokens: int, count: int, head_size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(tokens, count, head_size).to(dtype)


def reference(x: Tensor, positions: Tensor, cache: Tensor, is_neox: bool) -> Tensor:
    """``x`` [tokens, heads, head_size], each pair multiplied by a complex number in float64."""
    half = cache.size(1) // 2
    cos, sin = cache[positions.long()].double().unsqueeze(1).split(half, -1)
    real, imaginary = (
        (slice(0, half), slice(half, 2 * half)) if is_neox else (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    )
    expected = x.double()
    turned = torch.complex(expected[..., real], expected[..., imaginary]) * torch.complex(cos, sin)
    expected[..., real], expected[..., imaginary] = turned.real, turned.imag
    return expected


@STYLES
@pytest.mark.parametrize("dtype", HALVES, ids=id_of)
@pytest.mark.parametrize("tokens", [0, 1, 17])
@pytest.mark.parametrize(("head_size", "rotary_dim"), HEADS)
@pytest.mark.parametrize("is_flat", [True, False])
def test_in_place(
    head_size: int,
    rotary_dim: int,
    tokens: int,
    dtype: torch.dtype,
    is_neox: bool,
    is_flat: bool,
    assert_rounded: Callable[..., None],
) -> None:
    q, k = heads(tokens, 6, head_size, dtype), heads(tokens, 2, head_size, dtype)
    cache, positions = make_cache(rotary_dim), make_positions(tokens)
    expected = [reference(x, positions, cache, is_neox) for x in (q, k)]
    tails = [x[..., rotary_dim:].clone() for x in (q, k)]
    query, key = (x.view(tokens, x.size(1) * head_size) if is_flat else x for x in (q, k))
    result = sgl_kernel.apply_rope_with_cos_sin_cache_inplace(
        positions, query, key, head_size, cache, is_neox
    )
    assert result is None
    for x, rotated, tail in zip((q, k), expected, tails, strict=True):
        assert_rounded(x, rotated)
        assert torch.equal(x[..., rotary_dim:], tail)


@STYLES
def test_views_of_a_packed_projection(is_neox: bool, assert_rounded: Callable[..., None]) -> None:
    qkv = heads(9, 10, 64).view(9, 640)
    q, k, v = qkv.split([6 * 64, 2 * 64, 2 * 64], -1)
    cache, positions, value = make_cache(64), make_positions(9), v.clone()
    expected = [reference(x.reshape(9, -1, 64), positions, cache, is_neox) for x in (q, k)]
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, q, k, 64, cache, is_neox)
    assert_rounded(q.reshape(9, -1, 64), expected[0])
    assert_rounded(k.reshape(9, -1, 64), expected[1])
    assert torch.equal(v, value)


@STYLES
def test_slices_of_wider_heads(is_neox: bool, assert_rounded: Callable[..., None]) -> None:
    wide_q, wide_k = heads(9, 6, 192), heads(9, 1, 576)
    q, k = wide_q[..., 128:], wide_k[..., 512:]
    cache, positions, rest = make_cache(64), make_positions(9), wide_q[..., :128].clone()
    expected = [reference(x, positions, cache, is_neox) for x in (q, k)]
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, q, k, 64, cache, is_neox)
    assert_rounded(q, expected[0])
    assert_rounded(k, expected[1])
    assert torch.equal(wide_q[..., :128], rest)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=id_of)
def test_position_dtypes(dtype: torch.dtype, assert_rounded: Callable[..., None]) -> None:
    q, k, cache = heads(5, 4, 64), heads(5, 2, 64), make_cache(64)
    positions = torch.tensor([0, 1, 1, 100, 255]).to(dtype)
    expected = reference(q, positions, cache, True)
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, q, k, 64, cache)
    assert_rounded(q, expected)


@STYLES
def test_keys_and_values_go_to_their_slots(is_neox: bool) -> None:
    q, k, value = heads(5, 4, 64), heads(5, 2, 64), heads(5, 6, 64).view(5, 384)[:, 128:256]
    buffers = [torch.randn(11, 128).bfloat16() for _ in ("key", "value")]
    before = [buffer.clone() for buffer in buffers]
    slots = torch.tensor([10, 0, 3, 7, 4])
    fused = FusedSetKVBufferArg(value, *buffers, None, None, slots)
    cache, positions = make_cache(32), make_positions(5)
    plain_q, plain_k = q.clone(), k.clone()
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, plain_q, plain_k, 64, cache, is_neox)
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, q, k, 64, cache, is_neox, fused)
    assert torch.equal(q, plain_q)
    assert torch.equal(k, plain_k)
    for buffer, old, rows in zip(buffers, before, (k.view(5, 128), value), strict=True):
        old[slots] = rows
        assert torch.equal(buffer, old)


def test_slots_outside_the_cache_are_not_stored() -> None:
    q, k, value = heads(3, 4, 64), heads(3, 2, 64), heads(3, 2, 64).view(3, 128)
    buffers = [torch.zeros(4, 128).bfloat16() for _ in ("key", "value")]
    fused = FusedSetKVBufferArg(value, *buffers, None, None, torch.tensor([-1, 2, 4]))
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(
        make_positions(3), q, k, 64, make_cache(64), fused_set_kv_buffer_arg=fused
    )
    assert torch.equal(buffers[0][2], k[1].flatten())
    assert torch.equal(buffers[1][2], value[1])
    for buffer in buffers:
        assert not buffer[[0, 1, 3]].any()


def test_positions_outside_the_table_give_nan() -> None:
    q, k = heads(3, 4, 64), heads(3, 2, 64)
    tail = q[..., 32:].clone()
    positions = torch.tensor([-1, 5, MAX_POSITION])
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, q, k, 64, make_cache(32))
    assert q[[0, 2], :, :32].isnan().all()
    assert q[1].isfinite().all()
    assert torch.equal(q[..., 32:], tail)


def test_cache_of_another_dtype() -> None:
    q, k = heads(3, 4, 64), heads(3, 2, 64)
    with pytest.raises(
        ValueError, match=r"^cos_sin_cache.dtype: expected torch.float32, got torch.bfloat16$"
    ):
        sgl_kernel.apply_rope_with_cos_sin_cache_inplace(
            make_positions(3), q, k, 64, make_cache(64).bfloat16()
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_scale": 1.0}, r"k_scale, v_scale: expected None, got 1\.0, None"),
        ({"v_scale": 0.5}, r"k_scale, v_scale: expected None, got None, 0\.5"),
        (
            {"cache_loc": torch.zeros(3, dtype=torch.int32)},
            r"cache_loc\.dtype: expected torch\.int64, got torch\.int32",
        ),
    ],
)
def test_unsupported_stores(changes: dict[str, Any], message: str) -> None:
    q, k = heads(3, 4, 64), heads(3, 2, 64)
    arguments = {
        "value": heads(3, 2, 64),
        "k_buffer": heads(4, 2, 64),
        "v_buffer": heads(4, 2, 64),
        "k_scale": None,
        "v_scale": None,
        "cache_loc": torch.zeros(3, dtype=torch.int64),
    }
    with pytest.raises(AssertionError, match=f"^{message}$"):
        sgl_kernel.apply_rope_with_cos_sin_cache_inplace(
            make_positions(3), q, k, 64, make_cache(64), True, FusedSetKVBufferArg(**(arguments | changes))
        )


NAMES = (
    *("q", "k", "q_rope", "k_rope", "cos_sin_cache", "pos_ids", "interleave", "enable_pdl", "cuda_stream"),
    *("v", "k_buffer", "v_buffer", "kv_cache_loc"),
)


def arguments(has_store: bool = True, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Good arguments of the operator: 3 tokens, 4 and 2 heads of 16, of which 8 elements turn, 5 slots."""
    q, k = heads(3, 4, 16, dtype), heads(3, 2, 16, dtype)
    good: dict[str, Any] = dict(zip(NAMES, (q, k, torch.empty_like(q), torch.empty_like(k)), strict=False))
    good |= {"cos_sin_cache": make_cache(8), "pos_ids": make_positions(3)}
    good |= {"interleave": False, "enable_pdl": False, "cuda_stream": 0}
    store = (heads(3, 2, 16, dtype), heads(5, 2, 16, dtype), heads(5, 2, 16, dtype), torch.tensor([4, 0, 2]))
    return good | dict(zip(NAMES[9:], store if has_store else [None] * 4, strict=True))


@STYLES
@pytest.mark.parametrize("has_store", [False, True])
@pytest.mark.parametrize("dtype", HALVES, ids=id_of)
def test_out_of_place(
    is_neox: bool, has_store: bool, dtype: torch.dtype, assert_rounded: Callable[..., None]
) -> None:
    case = arguments(has_store, dtype) | {"interleave": not is_neox}
    before = {name: case[name].clone() for name in ("q", "k")}
    getattr(torch.ops.sgl_kernel, OP)(*case.values())
    for name, old in before.items():
        assert torch.equal(case[name], old)
        expected = reference(old, case["pos_ids"], case["cos_sin_cache"], is_neox)
        assert_rounded(case[f"{name}_rope"], expected)


@STYLES
@pytest.mark.parametrize("has_store", [False, True])
@pytest.mark.parametrize("dtype", HALVES, ids=id_of)
def test_opcheck(is_neox: bool, has_store: bool, dtype: torch.dtype) -> None:
    case = arguments(has_store, dtype) | {"interleave": not is_neox}
    torch.library.opcheck(getattr(torch.ops.sgl_kernel, OP).default, tuple(case.values()))


@STYLES
@pytest.mark.parametrize("dynamic", [False, True])
def test_one_graph(is_neox: bool, dynamic: bool, compile_whole: Callable[..., Any]) -> None:
    def run(positions: Tensor, qkv: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = qkv.split([256, 128, 128], -1)
        sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, q, k, 64, cache, is_neox)
        return q + 1, k + v

    qkv, cache, positions = heads(6, 8, 64).view(6, 512), make_cache(64), make_positions(6)
    expected_qkv = qkv.clone()
    expected = run(positions, expected_qkv, cache)
    result = compile_whole(run, dynamic=dynamic)(positions, qkv, cache)
    assert torch.equal(qkv, expected_qkv)
    for actual, wanted in zip(result, expected, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_graph_with_a_store(dynamic: bool, compile_whole: Callable[..., Any]) -> None:
    def run(positions: Tensor, q: Tensor, k: Tensor, fused: FusedSetKVBufferArg) -> None:
        sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, q, k, 64, cache, True, fused)

    q, k, value, cache = heads(3, 4, 64), heads(3, 2, 64), heads(3, 2, 64).view(3, 128), make_cache(64)
    buffers = [torch.zeros(4, 128).bfloat16() for _ in ("key", "value")]
    positions, slots = make_positions(3), torch.tensor([3, 0, 1])
    expected = [tensor.clone() for tensor in (q, k, *buffers)]
    run(positions, *expected[:2], FusedSetKVBufferArg(value, *expected[2:], None, None, slots))
    compiled = compile_whole(run, dynamic=dynamic)
    compiled(positions, q, k, FusedSetKVBufferArg(value, *buffers, None, None, slots))
    for actual, wanted in zip((q, k, *buffers), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_meta() -> None:
    q, k, cache = (tensor.to("meta") for tensor in (heads(3, 4, 64), heads(3, 2, 64), make_cache(64)))
    positions = make_positions(3).to("meta")
    assert sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, q, k, 64, cache) is None


def strided(tensor: Tensor) -> Tensor:
    """The same shape with a last stride of 2."""
    return torch.stack((tensor, tensor), -1).flatten(-2)[..., ::2]


THREE = "expected 3-D [tokens, heads, head_size], got 2-D"
# What changes, and the message.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "q's dimensions": ({"q": heads(3, 4, 16).view(3, 64)}, f"q: {THREE} [3, 64]"),
    "q's dtype": ({"q": heads(3, 4, 16, torch.float32)}, "q: expected float16 or bfloat16, got float32"),
    "q's last stride": ({"q": strided(heads(3, 4, 16))}, "q.stride(-1): expected 1, got 2"),
    "k's dimensions": ({"k": heads(3, 2, 16).view(3, 32)}, f"k: {THREE} [3, 32]"),
    "k's tokens": ({"k": heads(2, 2, 16)}, "k.size(0): expected 3 (q.size(0)), got 2"),
    "k's head size": ({"k": heads(3, 2, 8)}, "k.size(2): expected 16 (q.size(2)), got 8"),
    "k's dtype": ({"k": heads(3, 2, 16, torch.float16)}, "k: expected bfloat16 (dtype of q), got float16"),
    "k's last stride": ({"k": strided(heads(3, 2, 16))}, "k.stride(-1): expected 1, got 2"),
    "q_rope's dimensions": ({"q_rope": heads(3, 4, 16).view(3, 64)}, f"q_rope: {THREE} [3, 64]"),
    "q_rope's tokens": ({"q_rope": heads(2, 4, 16)}, "q_rope.size(0): expected 3 (q's), got 2"),
    "q_rope's heads": ({"q_rope": heads(3, 5, 16)}, "q_rope.size(1): expected 4 (q's), got 5"),
    "q_rope's head size": ({"q_rope": heads(3, 4, 8)}, "q_rope.size(2): expected 16 (q's), got 8"),
    "q_rope's dtype": (
        {"q_rope": heads(3, 4, 16, torch.float16)},
        "q_rope: expected bfloat16 (q's), got float16",
    ),
    "q_rope's last stride": ({"q_rope": strided(heads(3, 4, 16))}, "q_rope.stride(-1): expected 1, got 2"),
    "k_rope's heads": ({"k_rope": heads(3, 4, 16)}, "k_rope.size(1): expected 2 (k's), got 4"),
    "k_rope's last stride": ({"k_rope": strided(heads(3, 2, 16))}, "k_rope.stride(-1): expected 1, got 2"),
    "table's dimensions": (
        {"cos_sin_cache": make_cache(8).view(-1, 4, 2)},
        "cos_sin_cache: expected 2-D [max_position, rotary_dim], got 3-D [512, 4, 2]",
    ),
    "table's dtype": (
        {"cos_sin_cache": make_cache(8).half()},
        "cos_sin_cache: expected float32 (cosines and sines), got float16",
    ),
    "table's last stride": (
        {"cos_sin_cache": strided(make_cache(8))},
        "cos_sin_cache.stride(-1): expected 1, got 2",
    ),
    "odd rotary_dim": (
        {"cos_sin_cache": torch.zeros(9, 7)},
        "cos_sin_cache.size(1): expected an even rotary_dim of 2 to head_size (16), at most 1024, got 7",
    ),
    "no rotary_dim": (
        {"cos_sin_cache": torch.zeros(9, 0)},
        "cos_sin_cache.size(1): expected an even rotary_dim of 2 to head_size (16), at most 1024, got 0",
    ),
    "rotary_dim beyond head_size": (
        {"cos_sin_cache": torch.zeros(9, 18)},
        "cos_sin_cache.size(1): expected an even rotary_dim of 2 to head_size (16), at most 1024, got 18",
    ),
    "table's rows": (
        {"cos_sin_cache": torch.zeros(9, 12)[:, :8]},
        "cos_sin_cache.stride(0): expected 8 (contiguous), got 12",
    ),
    "positions' dimensions": (
        {"pos_ids": make_positions(3).view(1, 3)},
        "pos_ids: expected 1-D [tokens], got 2-D [1, 3]",
    ),
    "positions' size": ({"pos_ids": make_positions(4)}, "pos_ids.size(0): expected 3 (q.size(0)), got 4"),
    "positions' dtype": (
        {"pos_ids": make_positions(3).short()},
        "pos_ids: expected int32 or int64, got int16",
    ),
    "positions' stride": ({"pos_ids": strided(make_positions(3))}, "pos_ids.stride(-1): expected 1, got 2"),
    "half a store": (
        {"v_buffer": None, "kv_cache_loc": None},
        "v, k_buffer, v_buffer, kv_cache_loc: expected all four or none, got 2 of them",
    ),
    "v's tokens": ({"v": heads(4, 2, 16)}, "v.size(0): expected 3 (k's), got 4"),
    "v's heads": ({"v": heads(3, 4, 16)}, "v.size(1): expected 2 (k's), got 4"),
    "k_buffer's dimensions": ({"k_buffer": heads(5, 2, 16).view(5, 32)}, f"k_buffer: {THREE} [5, 32]"),
    "k_buffer's heads": ({"k_buffer": heads(5, 4, 16)}, "k_buffer.size(1): expected 2 (k's), got 4"),
    "k_buffer's dtype": (
        {"k_buffer": heads(5, 2, 16, torch.float32)},
        "k_buffer: expected bfloat16 (k's), got float32",
    ),
    "k_buffer's last stride": (
        {"k_buffer": strided(heads(5, 2, 16))},
        "k_buffer.stride(-1): expected 1, got 2",
    ),
    "v_buffer's head size": ({"v_buffer": heads(5, 2, 8)}, "v_buffer.size(2): expected 16 (k's), got 8"),
    "v_buffer's slots": (
        {"v_buffer": heads(6, 2, 16)},
        "v_buffer.size(0): expected 5 (k_buffer.size(0)), got 6",
    ),
    "slots' dimensions": (
        {"kv_cache_loc": torch.zeros(3, 1, dtype=torch.int64)},
        "kv_cache_loc: expected 1-D [tokens], got 2-D [3, 1]",
    ),
    "slots' size": (
        {"kv_cache_loc": torch.zeros(2, dtype=torch.int64)},
        "kv_cache_loc.size(0): expected 3 (k.size(0)), got 2",
    ),
    "slots' dtype": (
        {"kv_cache_loc": torch.zeros(3, dtype=torch.int32)},
        "kv_cache_loc: expected int64 (a row of the buffers for each token), got int32",
    ),
    "slots' stride": (
        {"kv_cache_loc": torch.zeros(6, dtype=torch.int64)[::2]},
        "kv_cache_loc.stride(-1): expected 1, got 2",
    ),
}


def run_on(device: str, case: dict[str, Any]) -> None:
    getattr(torch.ops.sgl_kernel, OP)(
        *(
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
            if isinstance(x, Tensor) and device == "meta"
            else x
            for x in case.values()
        )
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str, device: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(RuntimeError) as failure:
        run_on(device, arguments() | changes)
    assert str(failure.value) == f"{OP}: {message}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("k", "device of q"),
        ("q_rope", "q's"),
        ("k_rope", "k's"),
        ("cos_sin_cache", "device of q"),
        ("pos_ids", "device of q"),
        ("v", "k's"),
        ("k_buffer", "k's"),
        ("v_buffer", "k's"),
        ("kv_cache_loc", "device of q"),
    ],
)
def test_bad_devices(name: str, reason: str) -> None:
    case = {
        key: x.to("meta") if isinstance(x, Tensor) and key != name else x for key, x in arguments().items()
    }
    with pytest.raises(RuntimeError) as failure:
        run_on("cpu", case)
    assert str(failure.value) == f"{OP}: {name}: expected a tensor on meta ({reason}), got one on cpu"
