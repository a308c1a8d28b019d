"""The auditor: what any torch extension needs of torch, Python and Linux, and what it carries for the GPU.

A target is a shared object, a wheel, a folder, an installed distribution, a requirement that the package
index answers, or a text file of undefined symbols. Nothing is loaded or executed.
"""

from __future__ import annotations

from ._findings import Finding, find
from ._report import AuditReport
from ._targets import Listener, audit, torch_requirement

__all__ = ["AuditReport", "Finding", "Listener", "audit", "find", "torch_requirement"]
