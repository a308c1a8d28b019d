"""An index directory on disk: where things lie, what it lists, and its journal.

::

    W/<wheel>.whl                  the wheels
    W/<wheel>.whl.metadata         their METADATA (PEP 658)
    W/index.html                   a page for people: wheels, certificates, coverage
    W/simple/index.{html,json}     the projects
    W/simple/<project>/index.{html,json}
    W/.lock                        held by the one writer
    W/.publish/                    files on their way in, and the journal

The journal ``.publish/journal.json`` names the wheels of the publication that is being put in place.
It is there before the first visible change and gone after the last one, so that whoever finds it
knows which wheels may be in the directory but not yet on every page.
"""

from __future__ import annotations

import json
from pathlib import Path

from packaging.utils import parse_wheel_filename

from sgl_kernel_rebuild.errors import PublishError
from sgl_kernel_rebuild.index._pages import JSON_PAGE, IndexedWheel, PageError, read_project_json

__all__ = [
    "JOURNAL",
    "LOCK",
    "METADATA_SUFFIX",
    "SIMPLE",
    "STAGE",
    "describe",
    "interrupted",
    "list_wheels",
    "read_journal",
    "wheels_on_disk",
]

SIMPLE = "simple"
LOCK = ".lock"
STAGE = ".publish"
JOURNAL = f"{STAGE}/journal.json"
METADATA_SUFFIX = ".metadata"


def list_wheels(index: Path) -> list[IndexedWheel]:
    """What the index offers, by project, version and file name; empty where nothing was published.

    Raises PublishError where the index cannot be read.
    """
    try:
        pages = sorted((index / SIMPLE).glob(f"*/{JSON_PAGE}"))
        return [wheel for page in pages for wheel in _read_page(page)]
    except OSError as err:
        raise PublishError(
            f"index: {index}: expected readable pages, got {describe(err)}\nCheck its permissions."
        ) from err


def interrupted(index: Path) -> list[str]:
    """File names of a publication that is under way or was cut short; raises PublishError."""
    try:
        return sorted(read_journal(index))
    except OSError as err:
        raise PublishError(
            f"index: {index / JOURNAL}: expected a readable file, got {describe(err)}\nCheck its permissions."
        ) from err


def read_journal(index: Path) -> set[str]:
    """File names in the journal, empty where there is none; raises PublishError, OSError."""
    path = index / JOURNAL
    try:
        names = json.loads(path.read_bytes())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"expected a list of file names, got {names!r}")
        for name in names:
            parse_wheel_filename(name)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except (ValueError, RecursionError) as err:
        raise PublishError(
            f"index: {path}: expected the journal of a publication, got something else ({err})"
            "\nRemove that file and publish the wheels again."
        ) from err
    return set(names)


def wheels_on_disk(index: Path) -> set[str]:
    """Names of the wheels that lie in the directory, listed or not."""
    return {path.name for path in index.iterdir() if path.name.endswith(".whl")}


def describe(err: OSError) -> str:
    """The reason and the file of a failed system call."""
    return f"{err.strerror or err}" + (f" ({err.filename})" if err.filename else "")


def _read_page(page: Path) -> list[IndexedWheel]:
    try:
        return read_project_json(page.read_bytes(), page.parent.name)
    except PageError as err:
        raise PublishError(
            f"index: {page}: {err}\nRemove the folder {page.parent.parent} and publish every wheel of the"
            " index again; the pages are made from the wheels alone."
        ) from err
