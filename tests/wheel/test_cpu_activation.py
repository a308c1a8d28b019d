from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import sgl_kernel
import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = ((16,), (1, 48), (3, 1000), (2, 5, 128), (2, 3, 4, 24), (99, 2816))
EMPTY = ((0, 128), (4, 0), (3, 0, 16), (0,))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu_and_mul": silu,
    "gelu_and_mul": gelu,
    "gelu_tanh_and_mul": gelu_tanh,
}


def id_of(value: object) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def reference(name: str, x: Tensor) -> Tensor:
    gate, up = x.double().chunk(2, -1)
    return ACTS[name](gate) * up


@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
@pytest.mark.parametrize("name", ACTS)
def test_new_output(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, assert_rounded: Callable[..., None]
) -> None:
    x = torch.randn(shape).to(dtype)
    before = x.clone()
    out = getattr(sgl_kernel, name)(x)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert torch.equal(x, before)
    assert_rounded(out, reference(name, x))


@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
@pytest.mark.parametrize("name", ACTS)
def test_given_output_and_row_strides(
    name: str, dtype: torch.dtype, assert_rounded: Callable[..., None]
) -> None:
    x = torch.randn(6, 80).to(dtype)[:, :64]
    out = torch.empty(6, 37, dtype=dtype)[:, 5:]
    assert getattr(sgl_kernel, name)(x, out) is out
    assert_rounded(out, reference(name, x))


@pytest.mark.parametrize("name", ACTS)
def test_extreme_values(name: str, assert_rounded: Callable[..., None]) -> None:
    gate = torch.tensor([torch.inf, 6e4, 100.0, 0.0, -0.0, -100.0, -6e4, torch.nan])
    x = torch.cat((gate, torch.ones(8))).half()
    out = getattr(sgl_kernel, name)(x)
    expected = torch.tensor([torch.inf, 6e4, 100.0, 0.0, 0.0, 0.0, 0.0, torch.nan], dtype=torch.float64)
    assert_rounded(out, expected.half().double())


@pytest.mark.parametrize("shape", [(3, 6), (5,), (2, 0)])
@pytest.mark.parametrize("name", ACTS)
def test_the_op_takes_any_width(
    name: str, shape: tuple[int, ...], assert_rounded: Callable[..., None]
) -> None:
    """The multiple of 16 bytes is a rule of the API, not of the operator."""
    x = torch.randn(*shape[:-1], 2 * shape[-1]).bfloat16()
    out = torch.empty(shape, dtype=torch.bfloat16)
    getattr(torch.ops.sgl_kernel, name)(out, x)
    assert_rounded(out, reference(name, x))


@pytest.mark.parametrize("shape", [(3, 12), (4,), (1, 2)])
@pytest.mark.parametrize("name", ACTS)
def test_rows_must_be_whole_chunks(name: str, shape: tuple[int, ...]) -> None:
    size = 2 * shape[-1]
    with pytest.raises(
        ValueError, match=rf"^{name}: input.size\(-1\): .* multiple of 16 bytes, got {size} bytes$"
    ):
        getattr(sgl_kernel, name)(torch.zeros(shape).half())


@pytest.mark.parametrize("shape", [(3, 16), (2, 8), (3, 1, 8), (24,)])
@pytest.mark.parametrize("name", ACTS)
def test_output_of_another_shape(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError) as failure:
        getattr(sgl_kernel, name)(torch.zeros(3, 16).half(), torch.empty(shape).half())
    assert str(failure.value) == f"{name}: out.shape: expected [3, 8], got {list(shape)}"


@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
@pytest.mark.parametrize("name", ACTS)
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    op = getattr(torch.ops.sgl_kernel, name).default
    torch.library.opcheck(op, (torch.empty(3, 24, dtype=dtype), torch.randn(3, 48).to(dtype)))
    torch.library.opcheck(op, (torch.empty(2, 3, 8, dtype=dtype), torch.randn(2, 3, 20).to(dtype)[..., :16]))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ACTS)
def test_one_graph(name: str, dynamic: bool, compile_whole: Callable[..., Any]) -> None:
    function = getattr(sgl_kernel, name)
    x, out = torch.randn(4, 6, 48).half(), torch.empty(4, 6, 24).half()
    compiled = compile_whole(lambda x: function(x) + 1, dynamic=dynamic)
    assert torch.equal(compiled(x), function(x) + 1)
    compiled = compile_whole(lambda x, out: function(x, out), dynamic=dynamic)
    assert torch.equal(compiled(x, out), function(x))
    assert torch.equal(out, function(x))


@pytest.mark.parametrize("name", ACTS)
def test_meta(name: str) -> None:
    out = getattr(sgl_kernel, name)(torch.empty(3, 4, 48, dtype=torch.bfloat16, device="meta"))
    assert (out.device.type, out.shape, out.dtype) == ("meta", (3, 4, 24), torch.bfloat16)


def make(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


# (out, input) and the message
BAD: dict[str, tuple[tuple[Tensor, Tensor], str]] = {
    "no dimension": ((make(), make()), "input: expected [..., 2 * width], got 0-D"),
    "input's dtype": (
        (make(3, 4), make(3, 8, dtype=torch.int8)),
        "input: expected bfloat16 or float16 or float32, got int8",
    ),
    "odd width": ((make(3, 4), make(3, 9)), "input.size(-1): expected an even number, got 9"),
    "input's last stride": ((make(3, 4), make(3, 16)[:, ::2]), "input.stride(-1): expected 1, got 2"),
    "input's rows": (
        (make(2, 3, 4), make(2, 4, 8)[:, :3]),
        "input: expected leading dimensions that flatten into rows, got [2, 3, 8]",
    ),
    "out's dimensions": ((make(12), make(3, 8)), "out: expected 2-D (input.dim()), got 1-D [12]"),
    "out's rows": ((make(2, 4), make(3, 8)), "out.size(0): expected 3 (input's), got 2"),
    "out's width": ((make(3, 8), make(3, 8)), "out.size(1): expected 4 (half of input.size(-1)), got 8"),
    "out's dtype": (
        (make(3, 4, dtype=torch.float32), make(3, 8)),
        "out: expected float16 (dtype of input), got float32",
    ),
    "out's last stride": ((make(3, 8)[:, ::2], make(3, 8)), "out.stride(-1): expected 1, got 2"),
    "out's leading dimensions": (
        (make(3, 2, 4).transpose(0, 1), make(2, 3, 8)),
        "out: expected leading dimensions that flatten into rows, got [2, 3, 4]",
    ),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ACTS)
def test_bad_arguments(name: str, case: str, device: str) -> None:
    tensors, message = BAD[case]
    out, x = (tensor if device == "cpu" else meta_like(tensor) for tensor in tensors)
    with pytest.raises(RuntimeError) as failure:
        getattr(torch.ops.sgl_kernel, name)(out, x)
    assert str(failure.value) == f"{name}: {message}"


def meta_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@pytest.mark.parametrize("name", ACTS)
def test_bad_devices(name: str) -> None:
    with pytest.raises(RuntimeError) as failure:
        getattr(torch.ops.sgl_kernel, name)(make(3, 4), meta_like(make(3, 8)))
    expected = f"{name}: out: expected a tensor on meta (device of input), got one on cpu"
    assert str(failure.value) == expected
