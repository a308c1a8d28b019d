"""One rejected call per check: the message names the argument, nothing is written, the GPU stays usable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import sgl_kernel
import torch
from sgl_kernel import FusedSetKVBufferArg
from torch import Tensor

from ._compare import assert_same_bits
from ._samples import OPS
from ._tensors import DEVICE, randn

Change = Callable[[Tensor], Any]
NORMS = {
    "rmsnorm": "output",
    "gemma_rmsnorm": "output",
    "fused_add_rmsnorm": "residual",
    "gemma_fused_add_rmsnorm": "residual",
}
ACTIVATIONS = ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul")
ROPE = "apply_rope_pos_ids_cos_sin_cache"


@dataclass(frozen=True)
class Case:
    """A valid call of ``op`` with some arguments changed, and what the message has to name."""

    op: str
    label: str
    changes: dict[str, Change]
    argument: str
    expected: str = ""
    got: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"

    def pattern(self) -> str:
        op, argument, expected, got = map(re.escape, (self.op, self.argument, self.expected, self.got))
        return f"{op}: {argument}[^:]*: expected .*{expected}.*, got .*{got}"


def longer(dim: int) -> Change:
    return lambda t: torch.cat((t, t.narrow(dim, 0, 1)), dim)


def every_other(t: Tensor) -> Tensor:
    """The same values, two elements apart in the last dimension."""
    return t.repeat_interleave(2, -1)[..., ::2]


def missing(_: Tensor) -> None:
    return None


def checks_of(
    op: str,
    name: str,
    dim: int,
    sizes: dict[int, int],
    dtypes: tuple[torch.dtype, torch.dtype],
    device: bool = True,
) -> Iterator[Case]:
    """The checks of most tensors: dim, the sizes that are given, dtype (right, wrong), device, stride."""
    right, wrong = dtypes
    yield Case(op, f"{name} dim", {name: lambda t: t.unsqueeze(0)}, name, f"{dim}", f"{dim + 1}")
    for d, size in sizes.items():
        yield Case(op, f"{name} size {d}", {name: longer(d)}, f"{name}.size({d})", f"{size}", f"{size + 1}")
    names = [str(dtype).removeprefix("torch.") for dtype in (right, wrong)]
    yield Case(op, f"{name} dtype", {name: lambda t: t.to(wrong)}, name, *names)
    if device:
        yield Case(op, f"{name} device", {name: lambda t: t.cpu()}, name, f"{DEVICE}:0", "cpu")
    yield Case(op, f"{name} stride", {name: every_other}, f"{name}.stride(", "1", "2")


HALF = (torch.bfloat16, torch.float32)


def norm_cases() -> Iterator[Case]:
    """input, output and residual [5, 64], weight [64]."""
    for op, other in NORMS.items():
        yield from checks_of(op, "input", 2, {}, HALF, device=False)
        yield from checks_of(op, other, 2, {0: 5, 1: 64}, HALF)
        yield from checks_of(op, "weight", 1, {0: 64}, HALF)
        yield Case(op, "input device", {"input": lambda t: t.cpu()}, "", "cpu", f"{DEVICE}:0")
        two_to_the_31 = dict.fromkeys(("input", other), lambda t: t[:1].expand(1 << 31, -1))
        yield Case(op, "token limit", two_to_the_31, "input", "sizes below 2147483648", "[2147483648, 64]")


def activation_cases() -> Iterator[Case]:
    """input [2, 5, 64], out [2, 5, 32]."""
    for op in ACTIVATIONS:
        for name in ("input", "out"):
            yield Case(op, f"{name} rows", {name: lambda t: longer(1)(t)[:, :5]}, name)
        yield Case(op, "input 0-D", {"input": lambda t: t.new_zeros(())}, "input", "", "0")
        yield Case(op, "input dtype", {"input": lambda t: t.double()}, "input", "float32", "float64")
        yield Case(op, "input odd", {"input": lambda t: t[..., :63]}, "input.size(", "even", "63")
        yield Case(op, "input stride", {"input": every_other}, "input.stride(", "1", "2")
        yield from checks_of(op, "out", 3, {0: 2, 1: 5, 2: 32}, HALF)
        yield Case(op, "input device", {"input": lambda t: t.cpu()}, "out", "cpu", f"{DEVICE}:0")
        wide: dict[str, Change] = {
            "input": lambda t: t.new_empty(1, 1, (1 << 31) + 8),
            "out": lambda t: t.new_empty(1, 1, (1 << 30) + 4),
        }
        yield Case(op, "width limit", wide, "input.size(-1)", "2147483648", "2147483656")
        many: dict[str, Change] = {
            "input": lambda t: t[:1, :1, :4].expand(1, 1 << 41, 4),
            "out": lambda t: t[:1, :1, :2].expand(1, 1 << 41, 2),
        }
        yield Case(op, "row limit", many, "input", "blocks")


def rope_cases() -> Iterator[Case]:
    """q [5, 4, 64], k, v [5, 2, 64], buffers [9, 2, 64], cos_sin_cache [16, 32], the indices [5]."""
    yield from checks_of(ROPE, "q", 3, {}, HALF, device=False)
    yield Case(ROPE, "q device", {"q": lambda t: t.cpu()}, "k", "cpu", f"{DEVICE}:0")
    yield from checks_of(ROPE, "k", 3, {0: 5, 2: 64}, HALF)
    yield from checks_of(ROPE, "q_rope", 3, {0: 5, 1: 4, 2: 64}, HALF)
    yield from checks_of(ROPE, "k_rope", 3, {0: 5, 1: 2, 2: 64}, HALF)
    yield from checks_of(ROPE, "cos_sin_cache", 2, {}, (torch.float32, torch.bfloat16))
    yield from checks_of(ROPE, "pos_ids", 1, {0: 5}, (torch.int64, torch.int16))
    yield from checks_of(ROPE, "v", 3, {0: 5, 1: 2, 2: 64}, HALF)
    yield from checks_of(ROPE, "k_buffer", 3, {1: 2, 2: 64}, HALF)
    yield from checks_of(ROPE, "v_buffer", 3, {0: 9, 1: 2, 2: 64}, HALF)
    yield from checks_of(ROPE, "kv_cache_loc", 1, {0: 5}, (torch.int64, torch.int32))
    for name in ("v", "k_buffer", "v_buffer", "kv_cache_loc"):
        yield Case(
            ROPE, f"no {name}", {name: missing}, "v, k_buffer, v_buffer, kv_cache_loc", "all four", "3"
        )

    cache = "cos_sin_cache"
    for width, label in ((31, "odd"), (66, "beyond head_size"), (0, "empty")):
        resized: dict[str, Change] = {cache: lambda t, width=width: t.new_zeros(16, width)}
        yield Case(ROPE, f"rotary_dim {label}", resized, f"{cache}.size(1)", "even", f"{width}")
    wide = dict.fromkeys(
        ("q", "k", "q_rope", "k_rope", "v", "k_buffer", "v_buffer"), lambda t: t.new_zeros(*t.shape[:2], 1026)
    )
    yield Case(
        *(ROPE, "rotary_dim limit", {**wide, cache: lambda t: t.new_zeros(16, 1026)}),
        *(f"{cache}.size(1)", "at most 1024", "1026"),
    )
    yield Case(
        ROPE, "cos_sin_cache rows", {cache: lambda t: longer(1)(t)[:, :32]}, f"{cache}.stride(0)", "32", "33"
    )
    heads = dict.fromkeys(("q", "q_rope"), lambda t: t[:, :1].expand(-1, 1 << 16, -1))
    yield Case(ROPE, "head limit", heads, "q", "2^16 heads", "[5, 65536, 64]")


CASES = [*norm_cases(), *activation_cases(), *rope_cases()]


def valid_arguments(op: str) -> dict[str, Any]:
    """By the names of the schema."""
    _, arguments = OPS["rope, stored" if op == ROPE else op]
    schema = getattr(torch.ops.sgl_kernel, op).default._schema
    return dict(zip((argument.name for argument in schema.arguments), arguments(DEVICE), strict=True))


def assert_gpu_works(op: str) -> None:
    getattr(torch.ops.sgl_kernel, op)(**valid_arguments(op))
    torch.cuda.synchronize()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_op_rejects(case: Case) -> None:
    arguments = valid_arguments(case.op)
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
    changed = {name: change(arguments[name]) for name, change in case.changes.items()}
    with pytest.raises(RuntimeError, match=case.pattern()):
        getattr(torch.ops.sgl_kernel, case.op)(**{**arguments, **changed})
    for name, value in before.items():
        assert_same_bits(arguments[name], value, f"{name}, after the rejected call")
    assert_gpu_works(case.op)


def x16(*shape: int) -> Tensor:
    return randn(*shape, dtype=torch.bfloat16)


def apply_rope(**changes: Any) -> None:
    """The public function on valid arguments, some changed; those of the fused argument by their field."""
    fused = {
        "value": x16(5, 128),
        "k_buffer": x16(9, 128),
        "v_buffer": x16(9, 128),
        "k_scale": None,
        "v_scale": None,
        "cache_loc": torch.arange(5, device=DEVICE),
    }
    fused.update((name, changes.pop(name)) for name in list(changes) if name in fused)
    cache = torch.zeros(16, 64, device=DEVICE)
    arguments = {
        "positions": torch.arange(5, device=DEVICE),
        "cos_sin_cache": cache,
        "head_size": 64,
        **changes,
    }
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(
        query=x16(5, 256), key=x16(5, 128), fused_set_kv_buffer_arg=FusedSetKVBufferArg(**fused), **arguments
    )


# The errors that belong to the public functions, before any op is called.
PUBLIC: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "rmsnorm 1-D": (RuntimeError, "rmsnorm: input", lambda: sgl_kernel.rmsnorm(x16(64), x16(64))),
    "silu_and_mul bytes": (ValueError, "16 bytes", lambda: sgl_kernel.silu_and_mul(x16(3, 12))),
    "gelu_and_mul bytes": (ValueError, "16 bytes", lambda: sgl_kernel.gelu_and_mul(x16(3, 12))),
    "gelu_tanh_and_mul bytes": (ValueError, "16 bytes", lambda: sgl_kernel.gelu_tanh_and_mul(x16(3, 12))),
    "silu_and_mul out dim": (AssertionError, "out", lambda: sgl_kernel.silu_and_mul(x16(3, 64), x16(32))),
    "silu_and_mul out rows": (AssertionError, "out", lambda: sgl_kernel.silu_and_mul(x16(3, 64), x16(4, 32))),
    "silu_and_mul out width": (
        AssertionError,
        "out",
        lambda: sgl_kernel.silu_and_mul(x16(3, 64), x16(3, 64)),
    ),
    "rope cache dtype": (ValueError, "float32", lambda: apply_rope(cos_sin_cache=x16(16, 64))),
    "rope k_scale": (AssertionError, "k_scale", lambda: apply_rope(k_scale=1.0)),
    "rope v_scale": (AssertionError, "v_scale", lambda: apply_rope(v_scale=1.0)),
    "rope cache_loc dtype": (
        *(AssertionError, "cache_loc"),
        lambda: apply_rope(cache_loc=torch.arange(5, device=DEVICE, dtype=torch.int32)),
    ),
    "rope head_size": (RuntimeError, "shape|head_size", lambda: apply_rope(head_size=100)),
    "rope positions": (RuntimeError, "pos_ids", lambda: apply_rope(positions=torch.arange(4, device=DEVICE))),
}


@pytest.mark.parametrize(("error", "message", "call"), PUBLIC.values(), ids=PUBLIC)
def test_public_function_rejects(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=message):
        call()
    assert_gpu_works("rmsnorm")
