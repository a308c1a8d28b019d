"""csrc/runtime/driver.cpp and launch.cpp: with every kind of driver, and with none."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ._tensors import Tensor

NO_DRIVER = (
    "CUDA driver: expected libcuda.so.1, got: "
    "libcuda.so.1: cannot open shared object file: No such file or directory\n"
    "Install the NVIDIA driver."
)
OLD_DRIVER = (
    "CUDA driver: {}: expected a driver for CUDA 12.0 or later, got one without this function\n"
    "Update the NVIDIA driver (525 or later)."
)
ILLEGAL = "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal address"
ANY_OP = {
    "norm": ("rmsnorm", [Tensor(4, 64), Tensor(4, 64), Tensor(64), 1e-6, False]),
    "activation": ("silu_and_mul", [Tensor(4, 64), Tensor(4, 128)]),
    "rope": (
        "apply_rope_pos_ids_cos_sin_cache",
        [
            *[Tensor(4, 8, 64)] * 4,
            Tensor(9, 64, dtype="float32"),
            Tensor(4, dtype="int64"),
            False,
            False,
            0,
            *[None] * 4,
        ],
    ),
}


def rmsnorm(native: Any, device: str = "cuda:0", enable_pdl: bool = False) -> None:
    """Launches a kernel for 4 rows of 64."""
    x = Tensor(4, 64, device=device)
    native.torch.call("rmsnorm", [x, x, Tensor(64, device=device), 1e-6, enable_pdl])


def refuses(message: str) -> Any:
    return pytest.raises(RuntimeError, match=f"^{re.escape(message)}$")


@pytest.fixture
def fresh_gpu(fresh: Callable[[], Any]) -> Any:
    native = fresh()
    native.driver.set("has_driver", True)
    native.driver.set_current_context(0)
    return native


@pytest.mark.parametrize("family", ANY_OP)
def test_no_driver(fresh: Callable[[], Any], family: str) -> None:
    native = fresh()
    op, values = ANY_OP[family]
    for _ in range(2):
        with refuses(NO_DRIVER):
            native.torch.call(op, values)
        assert native.torch.problems() == []
    native.driver.set("has_driver", True)  # installed meanwhile
    native.driver.set_current_context(0)
    native.torch.call(op, values)
    assert len(native.driver.launches()) == 1


def test_a_driver_without_a_function(fresh_gpu: Any) -> None:
    functions = fresh_gpu.driver.functions()
    assert "cuLibraryLoadData" in functions
    for function in functions:
        fresh_gpu.driver.set("missing_symbol", function)
        with refuses(OLD_DRIVER.format(function)):
            rmsnorm(fresh_gpu)
        assert fresh_gpu.torch.problems() == []
    fresh_gpu.driver.set("missing_symbol", "")
    rmsnorm(fresh_gpu)


def test_a_torch_without_cuda(fresh_gpu: Any) -> None:
    fresh_gpu.driver.set("has_torch_cuda", False)
    for _ in range(2):
        with refuses("torch: expected a CUDA build of torch, got one without libtorch_cuda.so"):
            rmsnorm(fresh_gpu)


def test_a_torch_without_current_stream(fresh_gpu: Any) -> None:
    fresh_gpu.driver.set("missing_symbol", "aoti_torch_get_current_cuda_stream")
    with refuses(
        "torch: expected aoti_torch_get_current_cuda_stream in libtorch_cuda.so, "
        "which torch 2.7.0 and later export"
    ):
        rmsnorm(fresh_gpu)


def test_no_stream(gpu: Any) -> None:
    gpu.driver.set("failing", "aoti_torch_get_current_cuda_stream")
    with refuses("torch: aoti_torch_get_current_cuda_stream: failed for device 0"):
        rmsnorm(gpu)


@pytest.mark.parametrize(
    ("function", "detail"),
    [
        ("cuCtxGetCurrent", ""),
        ("cuCtxGetDevice", ""),
        ("cuDeviceGet", ""),
        ("cuDeviceGetAttribute", ""),
        ("cuLibraryLoadData", ": norm, {kernel}, compute capability 9.0"),
        ("cuLibraryGetKernel", ": norm, {kernel}, compute capability 9.0"),
        ("cuKernelGetFunction", ": norm, {kernel}, compute capability 9.0"),
        ("cuKernelGetAttribute", ": norm, {kernel}, compute capability 9.0"),
        ("cuKernelSetAttribute", ": norm, {kernel}, compute capability 9.0"),
        ("cuLaunchKernelEx", ": {kernel}, grid 1 x 1 x 1, block {threads}, 0 bytes of shared memory"),
    ],
)
def test_a_call_that_fails(fresh_gpu: Any, function: str, detail: str) -> None:
    """The first launch fails cleanly, again too, and succeeds once the driver does."""
    shape, threads, blocks = fresh_gpu.norm.choose(4, 64, True)
    assert blocks == 1
    kernel = f"rmsnorm_bf16_{fresh_gpu.norm.shapes[shape][0]}"
    fresh_gpu.driver.set("failing", function)
    for _ in range(2):
        with refuses(f"{function}: {ILLEGAL}{detail.format(kernel=kernel, threads=threads)}"):
            rmsnorm(fresh_gpu)
        assert fresh_gpu.torch.problems() == []
        assert fresh_gpu.driver.context_depth() == 1
        assert fresh_gpu.driver.is_capture_mode_restored()
    fresh_gpu.driver.set("failing", "")
    rmsnorm(fresh_gpu)
    assert len(fresh_gpu.driver.launches()) == 1


@pytest.mark.parametrize("function", ["cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2"])
def test_a_context_that_cannot_be_made_current(fresh_gpu: Any, function: str) -> None:
    fresh_gpu.driver.set("failing", function)
    with refuses(f"{function.removesuffix('_v2')}: {ILLEGAL}"):
        rmsnorm(fresh_gpu, "cuda:1")
    assert fresh_gpu.driver.context_depth() == 1


def test_an_error_that_the_driver_does_not_know(gpu: Any) -> None:
    gpu.driver.set("failing", "cuCtxGetCurrent")
    gpu.driver.set("failing_status", 123456)
    with refuses("cuCtxGetCurrent: unknown error: "):
        rmsnorm(gpu)


def test_a_device_that_is_not_there(gpu: Any) -> None:
    with refuses("cuDeviceGet: CUDA_ERROR_INVALID_DEVICE: no such device"):
        rmsnorm(gpu, "cuda:2")


def test_a_device_beyond_every_table(gpu: Any) -> None:
    gpu.driver.set_current_context(-1)
    with refuses("device: expected an index below 64, got 64"):
        rmsnorm(gpu, "cuda:64")
    gpu.driver.set_current_context(0)


def test_the_current_device_needs_no_context(gpu: Any) -> None:
    pushes = gpu.driver.calls("cuCtxPushCurrent_v2")
    rmsnorm(gpu)
    assert gpu.driver.calls("cuCtxPushCurrent_v2") == pushes


def test_another_device_is_current_during_the_launch_only(gpu: Any) -> None:
    rmsnorm(gpu, "cuda:1")
    (launch,) = gpu.driver.launches()
    assert (launch["device"], launch["stream"]) == (1, 0x5001)
    assert gpu.driver.context_depth() == 1


def test_a_thread_without_a_context(gpu: Any) -> None:
    gpu.driver.set_current_context(-1)
    rmsnorm(gpu)
    (launch,) = gpu.driver.launches()
    assert (launch["device"], launch["stream"]) == (0, 0x5000)
    assert gpu.driver.context_depth() == 0
    gpu.driver.set_current_context(0)


@pytest.mark.parametrize(
    ("capability", "enable_pdl", "is_pdl"),
    [(80, True, False), (90, True, True), (120, True, True), (90, False, False)],
)
def test_dependent_launch_where_the_gpu_has_it(
    fresh_gpu: Any, capability: int, enable_pdl: bool, is_pdl: bool
) -> None:
    fresh_gpu.driver.set("compute_capability", capability)
    rmsnorm(fresh_gpu, enable_pdl=enable_pdl)
    (launch,) = fresh_gpu.driver.launches()
    assert launch["is_pdl"] is is_pdl


def test_code_is_loaded_once(fresh_gpu: Any) -> None:
    """A fat binary once a process, a kernel once; what a launch needs of a device once a device."""
    for _ in range(3):
        for device in ("cuda:0", "cuda:1"):
            rmsnorm(fresh_gpu, device)
    assert len(fresh_gpu.driver.launches()) == 6
    calls = fresh_gpu.driver.calls
    assert (calls("cuLibraryLoadData"), calls("cuLibraryGetKernel")) == (1, 1)
    assert (calls("cuKernelGetFunction"), calls("cuKernelSetAttribute")) == (2, 2)
    assert calls("cuDevicePrimaryCtxRetain") == 1  # device 0 was current already


def test_first_launches_from_many_threads(fresh_gpu: Any) -> None:
    start = threading.Barrier(8)

    def launch() -> None:
        start.wait(timeout=20)
        for _ in range(5):
            rmsnorm(fresh_gpu)

    threads = [threading.Thread(target=launch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fresh_gpu.driver.launches()) == 40
    assert fresh_gpu.driver.calls("cuLibraryLoadData") == 1
    assert fresh_gpu.driver.calls("cuLibraryGetKernel") == 1
