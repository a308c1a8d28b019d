"""Reads what ``ptxas -v`` says about each entry point.

The same lines come from nvcc (on stderr) and from NVRTC (in the program log, with a leading
``ptxas  .`` on continuation lines).
"""

from __future__ import annotations

import re
from dataclasses import replace

from ._model import Resources

_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_CUMULATIVE = re.compile(r"(\d+) bytes cumulative stack size")
_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")
_CONSTANT = re.compile(r"(\d+) bytes cmem\[\d+\]")
_RESOURCE_LINE = re.compile(
    r"ptxas info\s*: (\d+ bytes gmem|Compiling entry function|Function properties|Used \d+|Compile time)"
    r"|(ptxas\s+\.)?\s*\d+ bytes stack frame"
)


def parse_resources(log: str) -> dict[str, Resources]:
    """Return the resources of every entry point in a ``ptxas -v`` log.

    Spills of a function that was not inlined are added to the entry under which ptxas lists it.
    """
    kernels: dict[str, Resources] = {}
    entry = ""
    function = ""
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            entry = function = match[1]
            kernels[entry] = Resources()
        elif match := _PROPERTIES.search(line):
            function = match[1]
        elif not entry:
            continue
        elif match := _FRAME.search(line):
            stack, stores, loads = (int(value) for value in match.groups())
            used = kernels[entry]
            kernels[entry] = replace(
                used,
                stack=max(used.stack, stack) if function == entry else used.stack,
                spill_stores=used.spill_stores + stores,
                spill_loads=used.spill_loads + loads,
            )
        elif match := _REGISTERS.search(line):
            used = kernels[entry]
            cumulative = _CUMULATIVE.search(line)
            shared = _SHARED.search(line)
            kernels[entry] = replace(
                used,
                registers=int(match[1]),
                stack=max(used.stack, int(cumulative[1]) if cumulative else 0),
                shared=int(shared[1]) if shared else 0,
                constant=sum(int(size) for size in _CONSTANT.findall(line)),
            )
    return dict(sorted(kernels.items()))


def other_lines(log: str) -> list[str]:
    """Return what the log holds beyond resources: the warnings of compiler and assembler."""
    return [line.rstrip() for line in log.splitlines() if line.strip() and not _RESOURCE_LINE.match(line)]


def describe_excess(kernels: dict[str, Resources]) -> list[str]:
    """Return one phrase per kernel that spills or needs a stack: ``rmsnorm_bf16: 16 bytes spilled``."""
    lines = []
    for name, used in sorted(kernels.items()):
        parts = []
        if spilled := max(used.spill_stores, used.spill_loads):
            parts.append(f"{spilled} bytes spilled")
        if used.stack:
            parts.append(f"{used.stack} bytes of stack")
        if parts:
            lines.append(f"{name}: {', '.join(parts)}")
    return lines
