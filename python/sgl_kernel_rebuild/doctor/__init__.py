"""What is wrong with this machine, for anyone who runs torch extensions: facts, then findings.

Works without torch, without a GPU and without a network; imports neither torch nor what it examines.
"""

from __future__ import annotations

from ._findings import Finding, diagnose
from ._machine import Machine, examine
from ._redact import redact

__all__ = ["Finding", "Machine", "diagnose", "examine", "redact"]
