"""csrc/runtime/registry.cpp: what happens while the library is loaded, where nothing may throw."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest


def test_all_is_well(native: Any) -> None:
    assert native.torch.load_error() is None


@pytest.mark.parametrize(
    ("function", "nth"),
    [
        ("aoti_torch_library_init_def", 1),
        ("aoti_torch_library_init_impl", 1),
        ("aoti_torch_library_def", 1),
        ("aoti_torch_library_def", 3),
        ("aoti_torch_library_impl", 1),
        ("aoti_torch_library_impl", 4),
    ],
)
def test_a_refused_registration_names_the_op(
    native: Any, fresh: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, function: str, nth: int
) -> None:
    """Ops register in the same order each time, so the nth of the library is the nth refused."""
    op = native.torch.registrations()[nth - 1]["name"]
    monkeypatch.setenv("FAKE_TORCH_FAIL", f"{function}:{nth}")
    refused = fresh()
    assert refused.torch.load_error() == (
        f"sgl_kernel: {op}: torch refused to register it; another package that defines torch.ops.sgl_kernel "
        "is loaded in this process"
    )


def test_the_first_refusal_is_kept(
    native: Any, fresh: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a library object, every op is refused: the message stays that of the first."""
    first = native.torch.registrations()[0]["name"]
    monkeypatch.setenv("FAKE_TORCH_FAIL", "aoti_torch_library_init_def:1")
    refused = fresh()
    assert refused.torch.registrations() == []
    assert re.match(f"sgl_kernel: {first}: ", refused.torch.load_error())
