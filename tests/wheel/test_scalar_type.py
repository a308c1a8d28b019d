from __future__ import annotations

import dataclasses

import pytest
import torch
from sgl_kernel.scalar_type import NanRepr, ScalarType, scalar_types

# name: (id, size in bits, least and greatest value, text)
TYPES: dict[str, tuple[int, int, float, float, str]] = {
    "int4": (1125899906908928, 4, -8, 7, "int4"),
    "uint4": (1125899906843648, 4, 0, 15, "uint4"),
    "int8": (1125899906909952, 8, -128, 127, "int8"),
    "uint8": (1125899906844672, 8, 0, 255, "uint8"),
    "float8_e4m3fn": (2814749767172868, 8, -448.0, 448.0, "float8_e4m3fn"),
    "float8_e5m2": (1125899906908677, 8, -57344.0, 57344.0, "float8_e5m2"),
    "float16_e8m7": (1125899906909960, 16, -3.3895313892515355e38, 3.3895313892515355e38, "float16_e8m7"),
    "float16_e5m10": (1125899906910725, 16, -65504.0, 65504.0, "float16_e5m10"),
    "float6_e3m2f": (562949953487363, 6, -28.0, 28.0, "float6_e3m2f"),
    "float4_e2m1f": (562949953487106, 4, -6.0, 6.0, "float4_e2m1f"),
    "uint2b2": (1125899907105280, 2, -2, 1, "uint2b2"),
    "uint3b4": (1125899907367680, 3, -4, 3, "uint3b4"),
    "uint4b8": (1125899907892224, 4, -8, 7, "uint4b8"),
    "uint8b128": (1125899923621888, 8, -128, 127, "uint8b128"),
}


@pytest.mark.parametrize("name", TYPES)
def test_named_types(name: str) -> None:
    scalar_type = getattr(scalar_types, name)
    scalar_type_id, size_bits, least, greatest, text = TYPES[name]
    assert scalar_type.id == scalar_type_id
    assert scalar_type.size_bits == size_bits
    assert (scalar_type.min(), scalar_type.max()) == (least, greatest)
    assert type(scalar_type.max()) is type(greatest)
    assert str(scalar_type) == text
    assert repr(scalar_type) == f"ScalarType.{text}"
    assert ScalarType.from_id(scalar_type_id) == scalar_type


def test_aliases() -> None:
    assert scalar_types.bfloat16 is scalar_types.float16_e8m7
    assert scalar_types.float16 is scalar_types.float16_e5m10


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float8_e4m3fn", torch.float8_e4m3fn),
        ("float8_e5m2", torch.float8_e5m2),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("int8", torch.int8),
        ("uint8", torch.uint8),
    ],
)
def test_limits_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    scalar_type = getattr(scalar_types, name)
    assert (scalar_type.min(), scalar_type.max()) == (info.min, info.max)


def test_equal_and_hashable_by_value() -> None:
    other = ScalarType(0, 4, False, 8)
    assert other == scalar_types.uint4b8
    assert hash(other) == hash(scalar_types.uint4b8)
    assert other in [scalar_types.uint4, scalar_types.uint4b8]
    assert other != scalar_types.uint4
    assert other == ScalarType.uint(4, 8)
    assert ScalarType.int_(4, None) == scalar_types.int4


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        scalar_types.uint4.bias = 8  # type: ignore[misc]


def test_questions() -> None:
    assert scalar_types.int4.is_signed()
    assert not scalar_types.uint4b8.is_signed()
    assert scalar_types.uint4.is_integer()
    assert not scalar_types.uint4.is_floating_point()
    assert scalar_types.float16.is_floating_point()
    assert scalar_types.uint4b8.has_bias()
    assert not scalar_types.uint4.has_bias()
    assert scalar_types.float16.is_ieee_754()
    assert scalar_types.float16.has_infs()
    assert scalar_types.float16.has_nans()
    assert not scalar_types.float8_e4m3fn.is_ieee_754()
    assert not scalar_types.float8_e4m3fn.has_infs()
    assert scalar_types.float8_e4m3fn.has_nans()
    assert not scalar_types.float4_e2m1f.has_nans()
    assert not scalar_types.int8.has_infs()


def test_reading_an_id_makes_it_known() -> None:
    unusual = ScalarType(0, 5, True, 3)
    scalar_type_id = 5 << 8 | 1 << 16 | 3 << 17 | 1 << 50
    with pytest.raises(ValueError, match=f"^from_id: expected the id of a known type, got {scalar_type_id}$"):
        ScalarType.from_id(scalar_type_id)
    assert unusual.id == scalar_type_id
    assert ScalarType.from_id(scalar_type_id) == unusual


def test_a_negative_bias_keeps_to_its_32_bits() -> None:
    assert ScalarType(0, 4, False, -1).id == 4 << 8 | 0xFFFFFFFF << 17 | 1 << 50


def test_nan_encodings() -> None:
    assert [encoding.value for encoding in NanRepr] == [0, 1, 2]


def test_no_length() -> None:
    with pytest.raises(TypeError, match="no length"):
        len(scalar_types.uint4)


def test_a_float_of_the_ieee_kind_has_its_own_constructor() -> None:
    with pytest.raises(
        ValueError, match=r"^float_: nan_repr: expected NONE or EXTD_RANGE_MAX_MIN, got IEEE_754"
    ):
        ScalarType.float_(5, 2, False, NanRepr.IEEE_754)


@pytest.mark.parametrize(("exponent", "mantissa"), [(0, 3), (12, 3), (4, -1), (4, 53)])
def test_floats_that_no_float64_holds(exponent: int, mantissa: int) -> None:
    with pytest.raises(ValueError, match=f"got {exponent} and {mantissa}$"):
        ScalarType.float_IEEE754(exponent, mantissa)
