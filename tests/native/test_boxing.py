"""csrc/runtime/boxing.h: what torch puts on the stack reaches the op, and nothing is lost on any way out."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ._build import CPP, CSRC, WARNINGS, run_compiler
from ._tensors import DTYPE_CODES, KNOWN_DTYPES, Tensor

UNREADABLE = "tensor: expected a strided tensor with storage, got one that torch cannot describe"
NOT_ALLOCATED = "torch: aoti_torch_empty_strided: failed; torch printed the reason"

INT64 = st.integers(-(2**63), 2**63 - 1)
# What may lie in the bytes that torch does not write.
GARBAGE = st.sampled_from([0, 2**64 - 1, 0xDEADBEEFDEADBEEF, 0x0101010101010100]) | st.integers(0, 2**64 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    sizes = draw(st.lists(st.integers(0, 9), max_size=5))
    strides = draw(st.none() | st.lists(INT64, min_size=len(sizes), max_size=len(sizes)))
    return Tensor(
        *sizes,
        strides=strides,
        dtype=draw(st.sampled_from(sorted(DTYPE_CODES))),
        device=draw(st.sampled_from(["cpu", "cuda:0", "cuda:7", "meta"])),
        address=draw(st.integers(0, 2**48)),
    )


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "Tensor": tensors(),
    "int": INT64,
    "float": st.floats(),
    "bool": st.booleans(),
    "ScalarType": st.sampled_from([*DTYPE_CODES.values(), 30, 63, 64, 127, -1]),
}
VALUES |= {f"{kind}?": st.none() | values for kind, values in VALUES.items()}


def as_seen(kind: str, value: Any) -> object:
    """What the op records of an argument; floats by their bits."""
    if value is None:
        return None
    if kind.startswith("Tensor"):
        return value.view()
    if kind.startswith("float"):
        return struct.pack("d", value)
    if kind.startswith("ScalarType"):
        known = {DTYPE_CODES[name]: name for name in KNOWN_DTYPES}
        return known.get(value, "another dtype")
    return value


def bits(value: Any) -> object:
    return struct.pack("d", value) if isinstance(value, float) else value


def probes(native: Any) -> list[dict[str, Any]]:
    return [op for op in native.torch.registrations() if op["name"].startswith("probe_")]


def draw_call(data: st.DataObject, native: Any) -> tuple[dict[str, Any], list[Any]]:
    op = data.draw(st.sampled_from(probes(native)))
    return op, [data.draw(VALUES[kind], label=kind) for kind in op["arguments"]]


def some_values(op: dict[str, Any]) -> list[Any]:
    """One value of each type, no optional empty."""
    values = {
        "Tensor": Tensor(2, 3),
        "int": -5,
        "float": 0.5,
        "bool": True,
        "ScalarType": DTYPE_CODES["bfloat16"],
    }
    return [values[kind.rstrip("?")] for kind in op["arguments"]]


def test_every_type_is_probed_at_every_position(native: Any) -> None:
    rotations = [op["arguments"] for op in probes(native) if op["name"].startswith("probe_all_")]
    assert sorted(rotations[0]) == sorted(VALUES)
    assert all(set(kinds) == set(VALUES) for kinds in zip(*rotations, strict=True))


@settings(deadline=None, max_examples=300)
@given(data=st.data(), garbage=GARBAGE)
def test_arguments_reach_the_op(native: Any, data: st.DataObject, garbage: int) -> None:
    op, values = draw_call(data, native)
    results = native.torch.call(op["name"], values, garbage)
    expected = [as_seen(kind, value) for kind, value in zip(op["arguments"], values, strict=True)]
    assert [bits(value) for value in native.torch.seen()] == expected
    count = op["schema"].rpartition("->")[2].count("Tensor")
    assert [result["sizes"] for result in results] == [[i + 1, 3] for i in range(count)]
    assert native.torch.problems() == []


@settings(deadline=None, max_examples=300)
@given(
    data=st.data(),
    garbage=GARBAGE,
    how=st.sampled_from(["", "Error", "exception", "bad_alloc", "int"]),
    text=TEXT,
    nth=st.integers(0, 60),
)
def test_nothing_is_lost_whatever_fails(
    native: Any, data: st.DataObject, garbage: int, how: str, text: str, nth: int
) -> None:
    """The nth of all calls into torch fails, or the op throws, or both."""
    op, values = draw_call(data, native)
    native.torch.misbehave(how, text)
    native.torch.fail("", nth)
    thrown = {"": None, "bad_alloc": "std::bad_alloc", "int": "sgl_kernel: unknown C++ exception"}.get(
        how, text
    )
    try:
        native.torch.call(op["name"], values, garbage)
        message = None
    except RuntimeError as err:
        message = str(err)
    native.torch.misbehave()
    native.torch.seen()
    if nth == 0 or native.torch.is_failure_pending():
        assert message == thrown
    else:
        assert message in (thrown, UNREADABLE, NOT_ALLOCATED)
    assert native.torch.problems() == []


@pytest.mark.parametrize("name", ["probe_all_0", "probe_all_5", "probe_returns_one", "probe_returns_three"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("aoti_torch_delete_tensor_object", None),  # nothing is left to do about it
        ("aoti_torch_get_data_ptr", UNREADABLE),
        ("aoti_torch_get_dim", UNREADABLE),
        ("aoti_torch_get_sizes", UNREADABLE),
        ("aoti_torch_get_strides", UNREADABLE),
        ("aoti_torch_get_dtype", UNREADABLE),
        ("aoti_torch_get_device_type", UNREADABLE),
        ("aoti_torch_get_device_index", UNREADABLE),
        ("aoti_torch_empty_strided", NOT_ALLOCATED),
    ],
)
def test_each_call_that_fails(native: Any, name: str, function: str, message: str | None) -> None:
    op = next(op for op in probes(native) if op["name"] == name)
    for nth in range(1, 20):
        native.torch.fail(function, nth)
        try:
            native.torch.call(name, some_values(op))
            got = None
        except RuntimeError as err:
            got = str(err)
        native.torch.seen()
        if native.torch.is_failure_pending():  # fewer calls than that
            break
        assert got == message
        assert native.torch.problems() == []
    assert nth > 1 or (function == "aoti_torch_empty_strided" and "returns" not in name)


def test_all_calls_that_can_fail_are_tested(native: Any) -> None:
    boxing = {
        mark.args[1][i][0]
        for mark in test_each_call_that_fails.pytestmark
        if isinstance(mark.args[0], tuple)
        for i in range(len(mark.args[1]))
    }
    registration = {
        function for function in native.torch.fallible() if "library" in function
    }  # test_registry.py
    assert boxing | registration == set(native.torch.fallible())


@pytest.mark.parametrize(
    ("how", "text", "message"),
    [
        ("Error", "op: x: expected 1, got 2", "op: x: expected 1, got 2"),
        ("Error", "100 %s %n · π " + "long " * 5000, "100 %s %n · π " + "long " * 5000),
        ("Error", "", ""),
        ("exception", "of the standard library", "of the standard library"),
        ("bad_alloc", "", "std::bad_alloc"),
        ("int", "", "sgl_kernel: unknown C++ exception"),
    ],
)
def test_what_the_op_throws(native: Any, how: str, text: str, message: str) -> None:
    native.torch.misbehave(how, text)
    for op in probes(native):
        with pytest.raises(RuntimeError) as caught:
            native.torch.call(op["name"], some_values(op))
        assert str(caught.value) == message
        assert native.torch.problems() == []


@pytest.mark.parametrize(
    ("name", "values", "inputs", "expected"),
    [
        ("probe_none", [], 1, 0),
        ("probe_one_0", [], 0, 1),
        ("probe_one_7", [], 2, 1),
        ("probe_all_0", [], 0, 10),
        ("probe_all_0", [], 9, 10),
        ("probe_all_0", [], 2**64 - 1, 10),
        ("probe_returns_three", [], 3, 5),
    ],
)
def test_a_wrong_number_of_arguments(
    native: Any, name: str, values: list[Any], inputs: int, expected: int
) -> None:
    """The stack holds garbage, which must not be taken for handles."""
    with pytest.raises(RuntimeError) as caught:
        native.torch.call(name, values, 0xDEADBEEFDEADBEE8, inputs)
    assert str(caught.value) == f"schema: expected {expected} arguments, got {inputs}"


def test_each_thread_keeps_its_own_message(native: Any) -> None:
    """All threads are inside aoti_torch_check before any of them reads its message."""
    threads = 8
    native.torch.set_check_barrier(threads)
    got: dict[int, str] = {}

    def fail(index: int) -> None:
        bad = Tensor(index, 1, 1)
        try:
            native.torch.call("rmsnorm", [bad, bad, Tensor(8), 1e-6, False])
        except RuntimeError as err:
            got[index] = str(err)

    workers = [threading.Thread(target=fail, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert got == {
        i: f"rmsnorm: input: expected 2-D [tokens, hidden], got 3-D [{i}, 1, 1]" for i in range(threads)
    }


def test_every_signature_compiles_as_in_the_wheel(tmp_path: Path) -> None:
    """The compiler warns about other things when it optimises, and a warning ends the build of the wheel."""
    run_compiler(
        [*WARNINGS, "-O3", f"-I{CSRC}", "-c", str(CPP / "probes.cpp"), "-o", str(tmp_path / "probes.o")]
    )
