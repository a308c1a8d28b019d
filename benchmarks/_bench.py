"""Timing on the GPU: cases, CUDA graphs over cold inputs, and the copy rate of the same run.

A call is timed inside a CUDA graph of at least forty calls that rotate among input sets of 128 MiB together,
so that neither the launch from Python nor a warm L2 is measured; tiny cases stop at 64 sets. What counts is
the median of the replays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._results import SUBJECT, Row, Timing, call_count, set_count

__all__ = ["BF16", "Case", "copy_ceiling", "measure", "randn", "run_case"]

BF16 = torch.bfloat16
DEVICE = "cuda"
COPY_GIB = (0.25, 0.5, 1, 2, 4)

Call = Callable[..., object]


@dataclass(frozen=True)
class Case:
    """One shape of one op. ``make`` returns a set of inputs, with which ``call`` and each peer are called.

    ``nbytes``: each input read once and each output written once; weights, one row for all, are left out.
    ``is_core``: timed in a quick run too. ``is_compiled``: the eager peer is also timed under torch.compile.
    """

    name: str
    nbytes: int
    make: Callable[[], tuple[Any, ...]]
    call: Call
    eager: Call | None = None
    is_core: bool = False
    is_compiled: bool = False


def randn(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float32).to(dtype)


def run_case(case: Case, replays: int, is_only_subject: bool, with_compile: bool) -> Row:
    """Times the subject and its peers on the same inputs; a failure becomes part of the row."""
    sets = [case.make() for _ in range(set_count(case.nbytes))]
    implementations: dict[str, Call] = {SUBJECT: case.call}
    if case.eager is not None and not is_only_subject:
        implementations["torch eager"] = case.eager
        if with_compile and case.is_compiled:
            torch._dynamo.reset()
            implementations["torch.compile"] = torch.compile(case.eager, dynamic=False)
    times = {}
    for name, call in implementations.items():
        try:
            times[name] = Timing.of(measure(call, sets, replays))
        except Exception as err:  # a peer that cannot do a case must not end the run
            times[name] = Timing(error=f"{type(err).__name__}: {str(err)[:200]}")
            torch.cuda.synchronize()
    del sets
    torch.cuda.empty_cache()
    return Row(case.name, case.nbytes, times)


def measure(call: Call, sets: Sequence[tuple[Any, ...]], replays: int) -> list[float]:
    """Microseconds per call of each replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for inputs in sets[:3]:  # compile, load and allocate before the capture
            call(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    count = call_count(len(sets))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            call(*sets[i % len(sets)])
    return [us / count for us in time_replays(graph.replay, replays)]


def time_replays(replay: Callable[[], object], replays: int) -> list[float]:
    """Microseconds of each of ``replays`` runs, after one that does not count."""
    replay()
    torch.cuda.synchronize()
    samples = []
    for _ in range(replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        samples.append(start.elapsed_time(end) * 1e3)
    return samples


def copy_ceiling(replays: int) -> tuple[float, str]:
    """The best rate of a device-to-device copy in GB/s, bytes read plus bytes written, and which it was.

    torch's copy_ is a driver copy between contiguous tensors, whose rate depends on the size; an elementwise
    kernel is tried beside it.
    """
    copies: dict[str, Callable[[Tensor, Tensor], object]] = {
        "copy_": lambda out, x: out.copy_(x),
        "neg": lambda out, x: torch.neg(x, out=out),
    }
    best, how = 0.0, ""
    for gib in COPY_GIB:
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.empty(int(gib * 2**30) // dtype.itemsize, dtype=dtype, device=DEVICE).normal_()
            out = torch.empty_like(x)
            for name, copy in copies.items():
                calls = max(1, int(8 / gib))
                run = _repeat(copy, out, x, calls)
                us = Timing.of(time_replays(run, replays)).us / calls
                rate = 2 * x.nbytes / us / 1e3
                if rate > best:
                    best, how = rate, f"{name} of {gib:g} GiB, {str(dtype).removeprefix('torch.')}"
            del x, out
    torch.cuda.empty_cache()
    return best, how


def _repeat(
    copy: Callable[[Tensor, Tensor], object], out: Tensor, x: Tensor, calls: int
) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            copy(out, x)

    return run
