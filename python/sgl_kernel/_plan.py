"""What ``gptq_marlin_gemm`` would launch on a GPU that is not here, and the roofline there.

Computed by the library's own heuristic and from data sheets; nothing is measured.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sgl_kernel._library import LIBRARY

__all__ = ["GPUS", "LAYERS", "TOKENS", "Gpu", "find_gpu", "plan", "plans", "table"]


@dataclass(frozen=True)
class Gpu:
    """Shared memory of a block in bytes, memory in GB/s, tensor cores in TFLOP/s (bf16, dense, fp32 sums)."""

    name: str
    compute_capability: int
    multiprocessors: int
    shared_memory: int
    memory: float
    tensor: float


# NVIDIA's architecture papers and data sheets; shared memory: CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability".
GPUS = (
    Gpu("RTX 5090", 120, 170, 99 << 10, 1792, 209.5),
    Gpu("RTX 4090", 89, 128, 99 << 10, 1008, 165.2),
    Gpu("RTX 3090", 86, 82, 99 << 10, 936, 71),
    Gpu("A100 80GB", 80, 108, 163 << 10, 2039, 312),
    Gpu("H100 SXM", 90, 132, 227 << 10, 3350, 989),
    Gpu("H200", 90, 132, 227 << 10, 4800, 989),
)
# Qwen3-32B: columns and rows.
LAYERS = {"qkv": (10240, 5120), "o": (5120, 8192), "gate_up": (51200, 5120), "down": (5120, 25600)}
TOKENS = (1, 8, 16, 32, 64, 128, 256, 1024, 4096)
_GROUP = 128


class _Plan(ctypes.Structure):
    """``Plan`` of csrc/ops/marlin_gemm.cpp."""

    _fields_ = (
        ("kernel", ctypes.c_char * 64),
        ("error", ctypes.c_char * 192),
        ("tile_tokens", ctypes.c_int),
        ("tile_columns", ctypes.c_int),
        ("tiles", ctypes.c_int),
        ("blocks", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
        ("is_split", ctypes.c_int),
    )


_make_plan: Any = ctypes.CDLL(str(LIBRARY)).sglk_marlin_gemm_plan
_make_plan.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_int] * 3 + [ctypes.POINTER(_Plan)]
_make_plan.restype = None


def find_gpu(name: str) -> Gpu:
    """The GPU of a name, in any case, with or without spaces.

    Raises:
        ValueError: it is none of ``GPUS``.
    """
    wanted = name.replace(" ", "").lower()
    for gpu in GPUS:
        if gpu.name.replace(" ", "").lower() == wanted:
            return gpu
    raise ValueError(f"expected one of {', '.join(gpu.name for gpu in GPUS)}, got {name!r}")


def plan(gpu: Gpu, tokens: int, columns: int, rows: int) -> dict[str, Any]:
    """The launch for bf16 tokens and 4-bit weights in groups of 128, and the roofline's two bounds in µs.

    Bytes are those of weights, scales, zero points, tokens and result, each moved once.

    Raises:
        ValueError: the op refuses the shape.
    """
    found = _Plan()
    device = (gpu.compute_capability, gpu.multiprocessors, gpu.shared_memory)
    _make_plan(tokens, columns, rows, *device, found)
    if found.error:
        raise ValueError(found.error.decode())
    size = columns * rows // 2 + columns * rows // _GROUP * 5 // 2 + 2 * tokens * (columns + rows)
    return {
        "tokens": tokens,
        "kernel": found.kernel.decode(),
        "tile": [found.tile_tokens, found.tile_columns],
        "tiles": found.tiles,
        "blocks": found.blocks,
        "shared_bytes": found.shared_bytes,
        "is_split": bool(found.is_split),
        "memory_us": round(size / gpu.memory / 1e3, 2),
        "tensor_us": round(2 * tokens * columns * rows / gpu.tensor / 1e6, 2),
    }


def plans(gpu: Gpu) -> dict[str, Any]:
    """Every layer of Qwen3-32B at every number of tokens, as plain JSON types."""
    rows = [
        {"layer": layer, **plan(gpu, tokens, columns, rows)}
        for layer, (columns, rows) in LAYERS.items()
        for tokens in TOKENS
    ]
    return {"measured": False, "gpu": asdict(gpu), "plans": rows}


def table(found: dict[str, Any]) -> Iterator[str]:
    """The lines of ``plans`` for people."""
    gpu = Gpu(**found["gpu"])
    yield (
        f"{gpu.name}: sm_{gpu.compute_capability}, {gpu.multiprocessors} multiprocessors, "
        f"{gpu.shared_memory >> 10} KB a block, {gpu.memory:g} GB/s, {gpu.tensor:g} TFLOP/s"
    )
    yield "Computed from the heuristic and the data sheet, not measured. Qwen3-32B, bf16, 4-bit weights."
    yield ""
    yield (
        f"{'layer':8}{'tokens':>7}  {'kernel':32}{'tile':>8}{'tiles':>7}{'blocks':>7}{'KB':>5}"
        f"{'memory µs':>11}{'tensor µs':>11}  bound by"
    )
    for row in found["plans"]:
        bound = "memory" if row["memory_us"] >= row["tensor_us"] else "tensor"
        tile = f"{row['tile'][0]}x{row['tile'][1]}"
        blocks = f"{row['blocks']}{'+' if row['is_split'] else ' '}"
        yield (
            f"{row['layer']:8}{row['tokens']:7}  {row['kernel']:32}{tile:>8}{row['tiles']:7}{blocks:>8}"
            f"{row['shared_bytes'] >> 10:4}{row['memory_us']:11.2f}{row['tensor_us']:11.2f}  {bound}"
        )
    yield ""
    yield "+: some tiles are shared by blocks (stream-K)."
