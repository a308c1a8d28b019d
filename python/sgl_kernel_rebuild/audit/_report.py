"""What an audit found, before it is judged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from packaging.tags import Tag

from sgl_kernel_rebuild.abi import Certificate
from sgl_kernel_rebuild.abi.gpu import CARDS, find_code

from ._python import PythonAbi

__all__ = ["CAPABILITIES", "AuditReport"]

_CUDA_RUNTIME = re.compile(r"libcudart(?:-[0-9a-f]+)?\.so\.(\d+)")
_OLDEST_CAPABILITY = 80

CAPABILITIES: dict[str, str] = {
    capability: ", ".join(name for name, of in CARDS.items() if of == capability)
    for capability in sorted(set(CARDS.values()), key=int)
    if int(capability) >= _OLDEST_CAPABILITY
}
"""Compute capability (``120``) to the names of its cards: what a report speaks of where nobody asks."""


@dataclass(frozen=True)
class AuditReport:
    """One target.

    ``code`` maps each shared object, but no list of symbols, to its targets, such as ``sm_90a``; ``python``
    to what it asks of Python. ``tags`` are the wheel's, empty where there is none; ``requires_torch`` is the
    requirement on torch in its metadata, None where there is none; ``unreadable`` has a message for each file
    that was left out.
    """

    certificate: Certificate
    code: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    python: Mapping[str, PythonAbi] = field(default_factory=dict)
    tags: frozenset[Tag] = frozenset()
    requires_torch: str | None = None
    unreadable: tuple[str, ...] = ()

    @property
    def cuda_runtimes(self) -> dict[str, str]:
        """The CUDA major version of each shared object that needs libcudart."""
        return {
            report.name: match[1]
            for report in self.certificate.objects
            for name in report.shared_object.needed
            if (match := _CUDA_RUNTIME.match(name))
        }

    def code_for(self, capability: str) -> dict[str, str]:
        """Return what each shared object with device code has for a GPU of ``capability``; "" is nothing."""
        return {name: find_code(targets, capability) for name, targets in self.code.items() if targets}

    def without_code(self, capabilities: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return those of ``capabilities`` that find no code, and those that find none in some objects.

        Objects that use nothing of torch count only where none does: they are libraries of others.
        """
        objects = self.certificate.objects
        users = {item.name for item in objects if item.torch_symbols and self.code.get(item.name)}
        everywhere, somewhere = [], []
        for capability in capabilities:
            codes = [code for name, code in self.code_for(capability).items() if not users or name in users]
            if codes and not any(codes):
                everywhere.append(capability)
            elif not all(codes):
                somewhere.append(capability)
        return everywhere, somewhere

    @property
    def conclusion(self) -> str:
        """What fits and what does not: a sentence on torch, and on GPUs if there is device code."""
        everywhere, somewhere = self.without_code(CAPABILITIES)
        sentences = [self.certificate.conclusion]
        if everywhere:
            names = ", ".join(f"sm_{item} ({CAPABILITIES[item]})" for item in everywhere)
            sentences.append(f"No code for {names}.")
        if somewhere:
            sentences.append(f"Parts of it have none for {', '.join(f'sm_{item}' for item in somewhere)}.")
        return " ".join(sentences)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        report = self.certificate.to_json()
        report["conclusion"] = self.conclusion
        report["tags"] = sorted(map(str, self.tags))
        report["requires_torch"] = self.requires_torch
        report["unreadable"] = list(self.unreadable)
        for item in report["objects"]:
            name = item["name"]
            targets = self.code.get(name)
            item["code"] = None if targets is None else list(targets)
            item["gpus"] = {f"sm_{gpu}": find_code(targets, gpu) for gpu in CAPABILITIES} if targets else {}
            item["cuda_runtime"] = self.cuda_runtimes.get(name)
            item["python"] = self.python[name].to_json() if name in self.python else None
        return report
