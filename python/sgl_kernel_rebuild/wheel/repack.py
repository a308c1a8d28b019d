"""Writes a wheel whose bytes follow from its content alone.

Fixed: the order of the members, their times, permissions and compression level, and the form of RECORD.
Not fixed is what another implementation of zlib makes of the same level; the hash of RECORD, which holds the
hash of every file, is the identity of the content.
"""

from __future__ import annotations

import csv
import io
import os
import stat
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

from sgl_kernel_rebuild.errors import GateError

from .archive import Wheel, record_digest

__all__ = ["repack", "source_date_epoch"]

# The beginning of time in a zip file: 1980-01-01.
_ZIP_EPOCH = 315532800
_ZIP_END = 4354819198  # 2107-12-31 23:59:58
_LEVEL = 7  # machine code: 2 % larger than at 9, in a quarter of the time


def source_date_epoch() -> int:
    """Return ``SOURCE_DATE_EPOCH``, or 1980-01-01, in seconds since 1970; never before 1980.

    Specification: https://reproducible-builds.org/specs/source-date-epoch/

    Raises:
        GateError: the variable is no number.
    """
    value = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not value:
        return _ZIP_EPOCH
    if not value.isdecimal():
        raise GateError(
            f"SOURCE_DATE_EPOCH: expected seconds since 1970, got {value!r}\nCorrect or unset the variable."
        )
    return min(max(int(value), _ZIP_EPOCH), _ZIP_END)


def repack(wheel: Wheel, additions: Mapping[str, bytes], output: Path) -> str:
    """Write ``wheel`` with ``additions`` (member name -> content) to ``output``; return RECORD's sha256.

    Folders are not written; RECORD is made anew and comes last, after the rest of the dist-info folder
    (PEP 427, "Recommended archiver features").
    """
    record_name = f"{wheel.dist_info}/RECORD"
    names = (wheel.members.keys() | additions.keys()) - {record_name}
    order = sorted(names, key=lambda name: (name.startswith(f"{wheel.dist_info}/"), name))
    date = time.gmtime(source_date_epoch())[:6]
    rows = []
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for name in order:
            data = additions[name] if name in additions else wheel.read(name)
            rows.append((name, record_digest(data), str(len(data))))
            archive.writestr(_info(name, date), data, zipfile.ZIP_DEFLATED, _LEVEL)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*rows, (record_name, "", "")])
        record = text.getvalue().encode()
        archive.writestr(_info(record_name, date), record, zipfile.ZIP_DEFLATED, _LEVEL)
    return record_digest(record)


def _info(name: str, date: tuple[int, ...]) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (date[0], date[1], date[2], date[3], date[4], date[5]))
    info.create_system = 3  # Unix, whose permissions follow
    is_script = ".data/scripts/" in name
    info.external_attr = (stat.S_IFREG | (0o755 if is_script else 0o644)) << 16
    return info
