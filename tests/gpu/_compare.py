"""One comparer for every GPU test: a tensor against a float64 reference, in ulps of the tensor's dtype.

An ulp here is one step in the order of the representable values, subnormals and infinity included.
An op that computes in fp32 and rounds once is at most 1 ulp from the rounded reference: its fp32 error
is far below half an ulp of fp16 or bf16, so it can only pick the neighbour when the reference lies
close to the middle of two values. Sums that cancel need more than that; ``slack`` says how much.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assert_close", "assert_same_bits", "bits", "ulp_distance"]

_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_SHOWN = 6


def bits(tensor: Tensor) -> Tensor:
    """The representation of each value, as integers of the same width."""
    return tensor.contiguous().view(_BITS[tensor.dtype]) if tensor.dtype in _BITS else tensor.contiguous()


def ulp_distance(a: Tensor, b: Tensor) -> Tensor:
    """Representable values between ``a`` and ``b``, elementwise; NaNs give figures without meaning."""
    return (_ordered(a) - _ordered(b)).abs()


def assert_close(
    actual: Tensor,
    expected: Tensor,
    *,
    ulps: int = 1,
    slack: Tensor | float = 0.0,
    label: str = "",
) -> None:
    """Fails unless every value is within ``ulps`` of the rounded ``expected`` or within ``slack`` of it.

    ``expected`` is the float64 reference. ``slack`` is an absolute bound (a scalar or a tensor that
    broadcasts), for sums that cancel. NaNs and infinities have to be at the same positions.
    """
    _same_kind(actual, expected, label)
    rounded = expected.to(actual.dtype)
    distance = ulp_distance(actual, rounded)
    is_near = (distance <= ulps) | ((actual.double() - expected).abs() <= slack)
    is_nan, should_be_nan = actual.isnan(), rounded.isnan()
    is_bad = ~is_near & ~should_be_nan
    is_bad |= (is_nan != should_be_nan) | (actual.isinf() != rounded.isinf())
    if is_bad.any():
        distance = distance.masked_fill(is_nan | should_be_nan, -1)
        raise AssertionError(_describe(actual, expected, rounded, is_bad, distance, f"{ulps} ulp", label))


def assert_same_bits(actual: Tensor, expected: Tensor, label: str = "") -> None:
    """Fails unless both tensors hold the same bits, NaN payloads and signs of zero included."""
    _same_kind(actual, expected, label)
    assert actual.dtype == expected.dtype, f"{label}: dtype: expected {expected.dtype}, got {actual.dtype}"
    is_bad = bits(actual) != bits(expected)
    if is_bad.any():
        distance = is_bad.long()
        if actual.dtype in _BITS:
            distance = ulp_distance(actual, expected).masked_fill(actual.isnan() | expected.isnan(), -1)
        raise AssertionError(_describe(actual, expected, expected, is_bad, distance, "0 bits", label))


def _ordered(tensor: Tensor) -> Tensor:
    """Integers in the order of the values: the sign-magnitude representation, unfolded around zero."""
    representation = bits(tensor)
    magnitude = (representation & torch.iinfo(representation.dtype).max).long()
    return torch.where(representation < 0, -magnitude, magnitude)


def _same_kind(actual: Tensor, expected: Tensor, label: str) -> None:
    assert actual.shape == expected.shape, (
        f"{label}: shape: expected {tuple(expected.shape)}, got {tuple(actual.shape)}"
    )
    assert actual.device == expected.device, f"{label}: expected {expected.device}, got {actual.device}"


def _describe(
    actual: Tensor,
    expected: Tensor,
    rounded: Tensor,
    is_bad: Tensor,
    distance: Tensor,
    allowed: str,
    label: str,
) -> str:
    positions = is_bad.nonzero()
    errors = distance[is_bad]
    worst = int(errors.argmax())
    worst_error = f"{int(errors[worst])} ulp" if errors[worst] >= 0 else "a NaN"
    nans = int((actual.isnan() & ~rounded.isnan()).sum()), int((rounded.isnan() & ~actual.isnan()).sum())
    lines = [
        f"{label or 'tensor'} {list(actual.shape)} {actual.dtype}: "
        f"{len(positions)} of {actual.numel()} values are off by more than {allowed}, "
        f"the worst by {worst_error}; NaN in the result alone: {nans[0]}, in the reference alone: {nans[1]}",
        f"{'position':>20}  {'result':>24}  {'reference, rounded':>24}  {'reference':>24}  ulp",
    ]
    for row in dict.fromkeys([*range(min(_SHOWN, len(positions))), worst]):
        position = tuple(positions[row].tolist())
        error = int(errors[row])
        lines.append(
            f"{list(position)!s:>20}  {_value(actual[position]):>24}  {_value(rounded[position]):>24}"
            f"  {float(expected[position]):>24.17g}  {'NaN' if error < 0 else error}"
        )
    return "\n".join(lines)


def _value(scalar: Tensor) -> str:
    representation = int(bits(scalar.reshape(1)).item()) & (2 ** (8 * scalar.element_size()) - 1)
    return f"{float(scalar):.9g} (0x{representation:0{2 * scalar.element_size()}x})"
