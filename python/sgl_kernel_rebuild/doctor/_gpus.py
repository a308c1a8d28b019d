"""The driver and its GPUs, from NVIDIA's management library, which comes with the driver."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

__all__ = ["Driver", "Gpu", "ask_driver"]


@dataclass(frozen=True)
class Gpu:
    """``capability`` reads ``120``; ``memory`` is in bytes."""

    name: str
    capability: str
    memory: int


@dataclass(frozen=True)
class Driver:
    """``cuda`` is the newest CUDA that the driver supports, such as ``12.8``."""

    version: str
    cuda: str


def ask_driver() -> tuple[Driver | None, str, tuple[Gpu, ...]]:
    """Return the driver, or None and why there is none, and the GPUs."""
    with warnings.catch_warnings():
        # A second distribution of this module's name, where it is installed, only says to take this one.
        warnings.simplefilter("ignore", FutureWarning)
        import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as err:
        return None, str(err), ()
    try:
        code = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        driver = Driver(str(pynvml.nvmlSystemGetDriverVersion()), f"{code // 1000}.{code % 1000 // 10}")
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            gpus.append(Gpu(str(pynvml.nvmlDeviceGetName(handle)), f"{major}{minor}", memory))
        return driver, "", tuple(gpus)
    except pynvml.NVMLError as err:
        return None, str(err), ()
    finally:
        pynvml.nvmlShutdown()
