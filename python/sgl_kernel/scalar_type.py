"""Number formats of quantized weights, torch dtypes or not, and their 64-bit ids.

A format is described by exponent and mantissa bits, a sign, and a bias that stored integers carry: uint4b8
stores ``value + 8``. Floating-point formats may lack infinities, and differ in how they encode NaN.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

__all__ = ["NanRepr", "ScalarType", "scalar_types"]


class NanRepr(Enum):
    """How a floating-point format encodes NaN."""

    NONE = 0  # not at all
    IEEE_754 = 1  # all exponent bits set, mantissa not zero
    EXTD_RANGE_MAX_MIN = 2  # all exponent and mantissa bits set; the other patterns are numbers


@dataclass(frozen=True)
class ScalarType:
    """A number format; equal and hashable by value.

    An integer has no exponent bits; its mantissa bits exclude the sign bit.
    """

    exponent: int
    mantissa: int
    signed: bool
    bias: int
    _finite_values_only: bool = False
    nan_repr: NanRepr = NanRepr.IEEE_754

    @classmethod
    def int_(cls, size_bits: int, bias: int | None) -> ScalarType:
        """A signed integer of ``size_bits`` bits, the sign included."""
        return cls._identified(cls(0, size_bits - 1, True, bias or 0))

    @classmethod
    def uint(cls, size_bits: int, bias: int | None) -> ScalarType:
        """An unsigned integer."""
        return cls._identified(cls(0, size_bits, False, bias or 0))

    @classmethod
    def float_IEEE754(cls, exponent: int, mantissa: int) -> ScalarType:
        """A floating-point format that follows IEEE 754: infinities, and NaNs at the top exponent."""
        _check_float(exponent, mantissa)
        return cls._identified(cls(exponent, mantissa, True, 0))

    @classmethod
    def float_(cls, exponent: int, mantissa: int, finite_values_only: bool, nan_repr: NanRepr) -> ScalarType:
        """A floating-point format that departs from IEEE 754."""
        _check_float(exponent, mantissa)
        if nan_repr is NanRepr.IEEE_754:
            raise ValueError(
                "float_: nan_repr: expected NONE or EXTD_RANGE_MAX_MIN, got IEEE_754 (float_IEEE754)"
            )
        return cls._identified(cls(exponent, mantissa, True, 0, finite_values_only, nan_repr))

    @classmethod
    def from_id(cls, scalar_type_id: int) -> ScalarType:
        """The type with this id. Raises ValueError for an id that no type has reported yet."""
        try:
            return _types_by_id[scalar_type_id]
        except KeyError:
            raise ValueError(f"from_id: expected the id of a known type, got {scalar_type_id}") from None

    @classmethod
    def _identified(cls, scalar_type: ScalarType) -> ScalarType:
        _types_by_id[scalar_type.id] = scalar_type
        return scalar_type

    @functools.cached_property
    def id(self) -> int:
        """From bit 0: exponent (8 bits), mantissa (8), signed (1), bias (32), finite only (1), NaN (8)."""
        scalar_type_id = (
            self.exponent
            | self.mantissa << 8
            | self.signed << 16
            | (self.bias & 0xFFFFFFFF) << 17
            | self._finite_values_only << 49
            | self.nan_repr.value << 50
        )
        _types_by_id[scalar_type_id] = self
        return scalar_type_id

    @property
    def size_bits(self) -> int:
        return self.exponent + self.mantissa + int(self.signed)

    def min(self) -> int | float:
        """The least value, the bias taken off."""
        if self.is_floating_point():
            return -self.max() if self.signed else 0.0
        return (-(1 << self.mantissa) if self.signed else 0) - self.bias

    def max(self) -> int | float:
        """The greatest finite value, the bias taken off."""
        if not self.is_floating_point():
            return (1 << self.mantissa) - 1 - self.bias
        top_exponent, top_mantissa = (1 << self.exponent) - 1, (1 << self.mantissa) - 1
        if self.nan_repr is NanRepr.IEEE_754:
            top_exponent -= 1
        elif self.nan_repr is NanRepr.EXTD_RANGE_MAX_MIN:
            top_mantissa -= 1
        exponent_bias = (1 << (self.exponent - 1)) - 1
        return math.ldexp((1 << self.mantissa) + top_mantissa, top_exponent - exponent_bias - self.mantissa)

    def is_signed(self) -> bool:
        return self.signed

    def is_floating_point(self) -> bool:
        return self.exponent != 0

    def is_integer(self) -> bool:
        return self.exponent == 0

    def has_bias(self) -> bool:
        return self.bias != 0

    def has_infs(self) -> bool:
        return self.is_floating_point() and not self._finite_values_only

    def has_nans(self) -> bool:
        return self.is_floating_point() and self.nan_repr is not NanRepr.NONE

    def is_ieee_754(self) -> bool:
        return self.is_floating_point() and self.nan_repr is NanRepr.IEEE_754 and not self._finite_values_only

    def __str__(self) -> str:
        """``uint4b8``, ``int8``, ``float16_e5m10``; ``f`` marks finite only, ``n`` NaNs of their own kind."""
        if not self.is_floating_point():
            bias = f"b{self.bias}" if self.has_bias() else ""
            return f"{'int' if self.signed else 'uint'}{self.size_bits}{bias}"
        name = f"float{self.size_bits}_e{self.exponent}m{self.mantissa}"
        if not self.is_ieee_754():
            name += ("f" if self._finite_values_only else "") + ("n" if self.has_nans() else "")
        return name

    def __repr__(self) -> str:
        return f"ScalarType.{self}"

    def __len__(self) -> int:
        # Without it, code that mistakes the type for a sequence gets an AttributeError from far away.
        raise TypeError("ScalarType: expected a sequence, got a number format, which has no length")


_types_by_id: dict[int, ScalarType] = {}


def _check_float(exponent: int, mantissa: int) -> None:
    if not (1 <= exponent <= 11 and 0 <= mantissa <= 52):
        expected = "1 to 11 exponent and 0 to 52 mantissa bits (a float64 holds the range)"
        raise ValueError(f"ScalarType: expected {expected}, got {exponent} and {mantissa}")


class scalar_types:
    """The formats with a name."""

    int4: ClassVar = ScalarType.int_(4, None)
    uint4: ClassVar = ScalarType.uint(4, None)
    int8: ClassVar = ScalarType.int_(8, None)
    uint8: ClassVar = ScalarType.uint(8, None)
    float8_e4m3fn: ClassVar = ScalarType.float_(4, 3, True, NanRepr.EXTD_RANGE_MAX_MIN)
    float8_e5m2: ClassVar = ScalarType.float_IEEE754(5, 2)
    float16_e8m7: ClassVar = ScalarType.float_IEEE754(8, 7)
    float16_e5m10: ClassVar = ScalarType.float_IEEE754(5, 10)

    # OCP Microscaling Formats (MX) 1.0, sections 5.3.2 and 5.3.3
    float6_e3m2f: ClassVar = ScalarType.float_(3, 2, True, NanRepr.NONE)
    float4_e2m1f: ClassVar = ScalarType.float_(2, 1, True, NanRepr.NONE)

    # GPTQ's symmetric formats
    uint2b2: ClassVar = ScalarType.uint(2, 2)
    uint3b4: ClassVar = ScalarType.uint(3, 4)
    uint4b8: ClassVar = ScalarType.uint(4, 8)
    uint8b128: ClassVar = ScalarType.uint(8, 128)

    bfloat16: ClassVar = float16_e8m7
    float16: ClassVar = float16_e5m10
