from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sgl_kernel
import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
SHAPES = ((1, 1), (1, 111), (3, 500), (7, 128), (19, 4096), (99, 1024))
EMPTY = ((0, 128), (4, 0), (0, 0))
EPS = 1e-6


def id_of(value: object) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def reference(x: Tensor, weight: Tensor, is_gemma: bool, eps: float = EPS) -> Tensor:
    factor = weight.double() + (1 if is_gemma else 0)
    x = x.double()
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * factor


def rows(tokens: int, hidden: int, dtype: torch.dtype, pad: int = 0) -> Tensor:
    return torch.randn(tokens, hidden + pad).to(dtype)[:, :hidden]


PLAIN = {"rmsnorm": False, "gemma_rmsnorm": True}
FUSED = {"fused_add_rmsnorm": False, "gemma_fused_add_rmsnorm": True}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", HALVES, ids=id_of)
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
def test_plain(
    name: str, shape: tuple[int, int], dtype: torch.dtype, assert_rounded: Callable[..., None]
) -> None:
    x, weight = rows(*shape, dtype), torch.randn(shape[1]).to(dtype)
    before = x.clone()
    out = getattr(sgl_kernel, name)(x, weight)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert torch.equal(x, before)
    assert_rounded(out, reference(x, weight, PLAIN[name]))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("pads", [(0, 3), (5, 0), (1, 8)])
def test_plain_with_row_strides(
    name: str, pads: tuple[int, int], assert_rounded: Callable[..., None]
) -> None:
    x, out = rows(9, 100, torch.bfloat16, pads[0]), rows(9, 100, torch.bfloat16, pads[1])
    weight = torch.randn(100).bfloat16()
    result = getattr(sgl_kernel, name)(x, weight, 1e-5, out, enable_pdl=False)
    assert result is out
    assert_rounded(out, reference(x, weight, PLAIN[name], 1e-5))


@pytest.mark.parametrize("name", PLAIN)
def test_plain_onto_its_input(name: str, assert_rounded: Callable[..., None]) -> None:
    x, weight = rows(5, 64, torch.float16), torch.randn(64).half()
    expected = reference(x, weight, PLAIN[name])
    assert getattr(sgl_kernel, name)(x, weight, out=x) is x
    assert_rounded(x, expected)


def test_eps_is_inside_the_root(assert_rounded: Callable[..., None]) -> None:
    x, weight = torch.full((2, 8), 0.5).half(), torch.ones(8).half()
    assert_rounded(sgl_kernel.rmsnorm(x, weight, eps=0.75), torch.full((2, 8), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("dtype", HALVES, ids=id_of)
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
@pytest.mark.parametrize("pads", [(0, 0), (3, 8)])
def test_fused(
    name: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    pads: tuple[int, int],
    assert_rounded: Callable[..., None],
) -> None:
    x, residual = (rows(*shape, dtype, pad) for pad in pads)
    weight = torch.randn(shape[1]).to(dtype)
    total = x.double() + residual.double()
    assert getattr(sgl_kernel, name)(x, residual, weight) is None
    assert_rounded(residual, total)
    assert_rounded(x, reference(total, weight, FUSED[name]))


def test_fused_normalizes_the_sum_before_it_is_rounded() -> None:
    """1 + 2**-9 has no bfloat16: were the rounded sum normalized, both elements would come out alike."""
    x = torch.tensor([[1.0, 1.0]]).bfloat16()
    residual = torch.tensor([[0.0, 2.0**-9]]).bfloat16()
    weight = torch.tensor([1.0, 300.0]).bfloat16()
    total = x.double() + residual.double()
    sgl_kernel.fused_add_rmsnorm(x, residual, weight)
    assert torch.equal(residual, torch.ones(1, 2).bfloat16())
    assert torch.equal(x, reference(total, weight, False).bfloat16())


def plain_arguments(dtype: torch.dtype = torch.bfloat16, pad: int = 0) -> tuple[Any, ...]:
    x = rows(3, 40, dtype, pad)
    return torch.empty(3, 40, dtype=dtype), x, torch.randn(40).to(dtype), EPS, False


def fused_arguments(dtype: torch.dtype = torch.bfloat16, pad: int = 0) -> tuple[Any, ...]:
    return rows(3, 40, dtype, pad), rows(3, 40, dtype), torch.randn(40).to(dtype), EPS, False


@pytest.mark.parametrize("dtype", HALVES, ids=id_of)
@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("name", [*PLAIN, *FUSED])
def test_opcheck(name: str, pad: int, dtype: torch.dtype) -> None:
    arguments = (plain_arguments if name in PLAIN else fused_arguments)(dtype, pad)
    torch.library.opcheck(getattr(torch.ops.sgl_kernel, name).default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_compiles_to_one_graph(name: str, dynamic: bool, compile_whole: Callable[..., Any]) -> None:
    function = getattr(sgl_kernel, name)
    x, weight, out = rows(6, 48, torch.float16), torch.randn(48).half(), torch.empty(6, 48).half()
    compiled = compile_whole(lambda x, weight: function(x, weight) * 2, dynamic=dynamic)
    assert torch.equal(compiled(x, weight), function(x, weight) * 2)
    compiled = compile_whole(lambda x, weight, out: function(x, weight, out=out), dynamic=dynamic)
    assert torch.equal(compiled(x, weight, out), function(x, weight))
    assert torch.equal(out, function(x, weight))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", FUSED)
def test_fused_compiles_to_one_graph(name: str, dynamic: bool, compile_whole: Callable[..., Any]) -> None:
    function = getattr(sgl_kernel, name)
    x, residual, weight = rows(6, 48, torch.float16), rows(6, 48, torch.float16), torch.randn(48).half()
    expected_x, expected_residual = x.clone(), residual.clone()
    function(expected_x, expected_residual, weight)
    compile_whole(function, dynamic=dynamic)(x, residual, weight)
    assert torch.equal(x, expected_x)
    assert torch.equal(residual, expected_residual)


@pytest.mark.parametrize("name", PLAIN)
def test_meta(name: str) -> None:
    x = torch.empty(3, 40, dtype=torch.bfloat16, device="meta")
    out = getattr(sgl_kernel, name)(x, torch.empty(40, dtype=torch.bfloat16, device="meta"))
    assert (out.device.type, out.shape, out.dtype) == ("meta", x.shape, x.dtype)


def make(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


# (input, output or residual, weight) and the message, where `other` stands for the second argument's name.
BAD: dict[str, tuple[tuple[Tensor, Tensor, Tensor], str]] = {
    "input's dimensions": (
        (make(2, 3, 4), make(3, 4), make(4)),
        "input: expected 2-D [tokens, hidden], got 3-D [2, 3, 4]",
    ),
    "input's dtype": (
        (make(3, 4, dtype=torch.float32), make(3, 4), make(4)),
        "input: expected float16 or bfloat16, got float32",
    ),
    "input's last stride": ((make(3, 8)[:, ::2], make(3, 4), make(4)), "input.stride(-1): expected 1, got 2"),
    "other's dimensions": (
        (make(3, 4), make(12), make(4)),
        "other: expected 2-D [tokens, hidden], got 1-D [12]",
    ),
    "other's rows": (
        (make(3, 4), make(2, 4), make(4)),
        "other.size(0): expected 3 (input.size(0)), got 2",
    ),
    "other's columns": (
        (make(3, 4), make(3, 8), make(4)),
        "other.size(1): expected 4 (input.size(1)), got 8",
    ),
    "other's dtype": (
        (make(3, 4), make(3, 4, dtype=torch.bfloat16), make(4)),
        "other: expected float16 (dtype of input), got bfloat16",
    ),
    "other's last stride": ((make(3, 4), make(3, 8)[:, ::2], make(4)), "other.stride(-1): expected 1, got 2"),
    "weight's dimensions": (
        (make(3, 4), make(3, 4), make(1, 4)),
        "weight: expected 1-D [hidden], got 2-D [1, 4]",
    ),
    "weight's size": (
        (make(3, 4), make(3, 4), make(2)),
        "weight.size(0): expected 4 (input.size(1)), got 2",
    ),
    "weight's dtype": (
        (make(3, 4), make(3, 4), make(4, dtype=torch.float32)),
        "weight: expected float16 (dtype of input), got float32",
    ),
    "weight's stride": ((make(3, 4), make(3, 4), make(8)[::2]), "weight.stride(-1): expected 1, got 2"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", [*PLAIN, *FUSED])
def test_bad_arguments(name: str, case: str, device: str) -> None:
    tensors, message = BAD[case]
    x, other, weight = (tensor if device == "cpu" else meta_like(tensor) for tensor in tensors)
    op = getattr(torch.ops.sgl_kernel, name)
    message = message.replace("other", "output" if name in PLAIN else "residual")
    with pytest.raises(RuntimeError) as failure:
        op(*((other, x) if name in PLAIN else (x, other)), weight, EPS, False)
    assert str(failure.value) == f"{name}: {message}"


def meta_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@pytest.mark.parametrize("name", [*PLAIN, *FUSED])
def test_bad_devices(name: str) -> None:
    op = getattr(torch.ops.sgl_kernel, name)
    second = "output" if name in PLAIN else "residual"
    x, other, weight = meta_like(make(3, 4)), make(3, 4), meta_like(make(4))
    tail = "expected a tensor on meta (device of input), got one on cpu"
    with pytest.raises(RuntimeError) as failure:
        op(*((other, x) if name in PLAIN else (x, other)), weight, EPS, False)
    assert str(failure.value) == f"{name}: {second}: {tail}"
    x, other, weight = meta_like(make(3, 4)), meta_like(make(3, 4)), make(4)
    with pytest.raises(RuntimeError) as failure:
        op(*((other, x) if name in PLAIN else (x, other)), weight, EPS, False)
    assert str(failure.value) == f"{name}: weight: {tail}"
