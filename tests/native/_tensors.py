"""Tensors that are only described: what the fake torch hands to an op."""

from __future__ import annotations

import math
from collections.abc import Sequence

# torch's codes (c10/core/ScalarType.h); of these the library knows all but complex64.
DTYPE_CODES = {
    "uint8": 0,
    "int8": 1,
    "int16": 2,
    "int32": 3,
    "int64": 4,
    "float16": 5,
    "float32": 6,
    "float64": 7,
    "complex64": 9,
    "bool": 11,
    "bfloat16": 15,
    "float8_e5m2": 23,
    "float8_e4m3fn": 24,
    "uint32": 28,
    "uint64": 29,
}
KNOWN_DTYPES = sorted(set(DTYPE_CODES) - {"complex64"})
DEVICE_TYPES = {"cpu": 0, "cuda": 1, "meta": 9}
INT_MAX = 2**31 - 1
# Where one kernel hands over to the next, and both sides of it.
NEAR_POWERS_OF_TWO = sorted({max(1, 2**e + d) for e in range(18) for d in (-8, -1, 0, 1, 8)})


def contiguous(sizes: Sequence[int]) -> list[int]:
    return [math.prod(max(size, 1) for size in sizes[d + 1 :]) for d in range(len(sizes))]


class Tensor:
    """sizes, and by default contiguous, bfloat16, on cuda:0, aligned to 256 bytes."""

    def __init__(
        self,
        *sizes: int,
        dtype: str = "bfloat16",
        strides: Sequence[int] | None = None,
        device: str = "cuda:0",
        address: int = 0x7F0000000000,
    ) -> None:
        self.sizes = list(sizes)
        self.strides = contiguous(sizes) if strides is None else list(strides)
        self.dtype = dtype
        self.dtype_code = DTYPE_CODES[dtype]
        self.device = device
        kind, _, index = device.partition(":")
        self.device_type = DEVICE_TYPES[kind]
        self.device_index = int(index or 0)
        self.address = address

    def __repr__(self) -> str:
        return f"Tensor({self.sizes}, {self.strides}, {self.dtype}, {self.device}, {self.address:#x})"

    def view(self) -> dict[str, object]:
        """What an op sees of it."""
        kind = self.device.partition(":")[0]
        return {
            "sizes": self.sizes,
            "strides": self.strides,
            "numel": math.prod(self.sizes),
            "shape": f"[{', '.join(map(str, self.sizes))}]",
            "dtype": self.dtype if self.dtype in KNOWN_DTYPES else "another dtype",
            "device": {"cpu": "cpu", "cuda": self.device}.get(kind, "another device"),
            "address": self.address,
        }
