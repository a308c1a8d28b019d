"""Which Python a shared object is for: what its name says, and what of the C API it uses.

The stable ABI is the list of abi3info, which is made from CPython's own ``Misc/stable_abi.toml``; file names
as in PEP 3149 (``.cpython-312-…``) and PEP 384 (``.abi3``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sgl_kernel_rebuild.abi._elffile import SharedObject
from sgl_kernel_rebuild.abi.symbols import is_python

__all__ = ["PythonAbi", "python_abi"]

_SUFFIX = re.compile(r"\.(abi3|cpython-(\d)(\d+)t?)(?:-[\w.-]*?)?\.so$")


@dataclass(frozen=True)
class PythonAbi:
    """``claims`` is ``abi3``, a version such as ``3.12``, or "" where the name says nothing.

    ``floor`` is the oldest Python whose stable ABI has all of the API that is used; ``unstable`` the used API
    that no stable ABI has.
    """

    claims: str
    uses_api: bool
    floor: str
    unstable: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return {
            "claims": self.claims,
            "uses_api": self.uses_api,
            "stable_abi_floor": self.floor,
            "unstable": list(self.unstable),
        }


def python_abi(shared_object: SharedObject) -> PythonAbi:
    """Return what the name and the undefined symbols of ``shared_object`` say."""
    match = _SUFFIX.search(shared_object.name)
    claims = "" if match is None else "abi3" if match[1] == "abi3" else f"{match[2]}.{match[3]}"
    used = sorted(
        symbol.name for symbol in shared_object.undefined if not symbol.is_weak and is_python(symbol)
    )
    if not used:
        return PythonAbi(claims, False, "", ())
    from abi3info import DATAS, FUNCTIONS
    from abi3info.models import PyVersion, Symbol

    floor = PyVersion(3, 2)
    unstable: list[str] = []
    for name in used:
        entry = FUNCTIONS.get(Symbol(name)) or DATAS.get(Symbol(name))
        if entry is not None:
            floor = max(floor, entry.added)
        else:
            unstable.append(name)
    return PythonAbi(claims, True, "" if unstable else f"{floor.major}.{floor.minor}", tuple(unstable))
