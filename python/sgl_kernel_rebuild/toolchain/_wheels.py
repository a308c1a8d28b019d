"""Finds the NVIDIA wheels of the build environment and their versions, without importing them."""

from __future__ import annotations

import glob
import os
import re
import sys

from sgl_kernel_rebuild.errors import ToolchainError

# Folder under nvidia/ and the distribution that brings it.
NVRTC = ("cuda_nvrtc", "nvidia-cuda-nvrtc-cu12")
CUDART = ("cuda_runtime", "nvidia-cuda-runtime-cu12")
CCCL = ("cuda_cccl", "nvidia-cuda-cccl-cu12")
NVFATBIN = ("nvfatbin", "nvidia-nvfatbin-cu12")

Component = tuple[str, str]


def folder(component: Component) -> str:
    """Return the folder of a component, for example ``…/nvidia/cuda_nvrtc``."""
    return os.path.join(_site(component), "nvidia", component[0])


def version(component: Component) -> str:
    """Return the installed version, from the ``.dist-info`` folder beside the component.

    Its name is fixed by "Recording installed projects" (packaging specifications):
    ``{normalised name}-{version}.dist-info``. Importing importlib.metadata would cost more than all
    else that a cache hit does.
    """
    stem = component[1].replace("-", "_")
    found = glob.glob(os.path.join(glob.escape(_site(component)), f"{stem}-*.dist-info"))
    if len(found) != 1:
        raise ToolchainError(
            f"{component[1]}: {_site(component)}: expected one {stem}-*.dist-info, got {len(found)}\n"
            f"Reinstall {component[1]}."
        )
    return os.path.basename(found[0])[len(stem) + 1 : -len(".dist-info")]


def library(component: Component, pattern: str) -> str:
    """Return the path of the shared library whose name matches the regular expression ``pattern``."""
    lib = os.path.join(folder(component), "lib")
    found = (
        [name for name in sorted(os.listdir(lib)) if re.fullmatch(pattern, name)]
        if os.path.isdir(lib)
        else []
    )
    if len(found) != 1:
        raise ToolchainError(
            f"{component[1]}: {lib}: expected one library {pattern}, got {found}\nReinstall {component[1]}."
        )
    return os.path.join(lib, found[0])


def _site(component: Component) -> str:
    for entry in sys.path:
        if entry and os.path.isdir(os.path.join(entry, "nvidia", component[0])):
            return entry
    raise ToolchainError(
        f"{component[1]}: no nvidia/{component[0]} on the module path of {sys.executable}\n"
        f"Install {component[1]} (the build requirements in pyproject.toml pin the version)."
    )
