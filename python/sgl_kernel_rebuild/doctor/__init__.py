"""What is wrong with this machine, for anyone who runs torch extensions: facts, then findings.

Works without torch, without a GPU and without a network; imports neither torch nor what it examines.
"""

from __future__ import annotations

from ._findings import Finding, diagnose
from ._gpus import Driver, Gpu, ask_driver
from ._machine import Machine, examine
from ._redact import redact

__all__ = ["Driver", "Finding", "Gpu", "Machine", "ask_driver", "diagnose", "examine", "redact"]
