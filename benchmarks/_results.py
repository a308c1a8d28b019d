"""What a run leaves behind: one JSON per family, read by the report. No torch here."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "SUBJECT",
    "Baseline",
    "FamilyRun",
    "ResultError",
    "Row",
    "Timing",
    "call_count",
    "geometric_mean",
    "load_baseline",
    "load_runs",
    "save_run",
    "set_count",
]

SCHEMA = 1
SUBJECT = "sgl_kernel"  # the implementation under test, among the keys of Row.times

COLD_BYTES = 128 << 20  # inputs in rotation: past the L2 of every GPU so far (an H200 has 60 MB)
MAX_SETS = 64
MIN_CALLS = 40  # in one graph, so that its launch weighs nothing


class ResultError(Exception):
    """A file of results is missing or is not one; the message names it."""


@dataclass(frozen=True)
class Timing:
    """Microseconds per call: the median of the replays, the fastest, the slowest; or why there are none."""

    us: float = math.nan
    low: float = math.nan
    high: float = math.nan
    error: str = ""

    @classmethod
    def of(cls, samples: Iterable[float]) -> Timing:
        ordered = [round(sample, 3) for sample in sorted(samples)]
        return cls(us=ordered[len(ordered) // 2], low=ordered[0], high=ordered[-1])

    @property
    def spread(self) -> float:
        """The slowest replay less the fastest, as a part of the median."""
        return (self.high - self.low) / self.us


@dataclass(frozen=True)
class Row:
    """One case; ``bytes`` are each input read once and each output written once."""

    case: str
    bytes: int
    times: dict[str, Timing]

    def time(self, name: str) -> Timing | None:
        """The timing of an implementation that has one."""
        timing = self.times.get(name)
        return None if timing is None or timing.error else timing

    def as_json(self) -> dict[str, Any]:
        times = {
            name: {"error": timing.error}
            if timing.error
            else {"us": timing.us, "low": timing.low, "high": timing.high}
            for name, timing in self.times.items()
        }
        return {"case": self.case, "bytes": self.bytes, "times": times}

    def gbps(self, name: str = SUBJECT) -> float | None:
        timing = self.time(name)
        return None if timing is None else self.bytes / timing.us / 1e3

    def speedup(self, over: str) -> float | None:
        """How many times faster the subject is than another implementation of the same run."""
        ours, theirs = self.time(SUBJECT), self.time(over)
        return None if ours is None or theirs is None else theirs.us / ours.us


@dataclass(frozen=True)
class FamilyRun:
    """A family's rows with all that is needed to read them: machine, versions, command, copy rate."""

    family: str
    rows: list[Row]
    machine: dict[str, str]  # gpu, driver, torch, cuda, python
    package: dict[str, Any]  # version, libraries: {file name: sha256}
    peers: dict[str, str] = field(default_factory=dict)  # implementation → what it is
    ceiling_gbps: float = math.nan
    ceiling_how: str = ""
    command: str = ""
    date: str = ""


@dataclass(frozen=True)
class Baseline:
    """Figures of another run, in microseconds by (family, case)."""

    name: str
    gpu: str
    torch: str
    date: str
    us: dict[tuple[str, str], float]


def set_count(nbytes: int) -> int:
    """Input sets to rotate among, so that each call finds its inputs outside the L2."""
    return max(1, min(MAX_SETS, math.ceil(COLD_BYTES / max(nbytes, 1))))


def call_count(sets: int) -> int:
    """Calls in one graph: whole rounds over the sets, at least MIN_CALLS of them."""
    return (MIN_CALLS // sets + 1) * sets


def geometric_mean(values: Iterable[float]) -> float | None:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def save_run(run: FamilyRun, folder: Path) -> Path:
    """Writes ``folder/<family>.json`` in one step."""
    data = {"schema": SCHEMA, **dataclasses.asdict(run), "rows": [row.as_json() for row in run.rows]}
    path = folder / f"{run.family}.json"
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def load_runs(folder: Path) -> list[FamilyRun]:
    """The runs in a folder, by family; raises ResultError if there are none or one cannot be read."""
    runs = [_load_run(path) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise ResultError(
            f"benchmarks: {folder}: expected <family>.json, got none\nRun: python -m benchmarks.run {folder}"
        )
    return runs


def load_baseline(path: Path) -> Baseline:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        us = {(row["family"], row["case"]): float(row["us"]) for row in data["rows"]}
        return Baseline(data["name"], data["gpu"], data["torch"], data["date"], us)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ResultError(
            f"benchmarks: {path}: expected a baseline (name, gpu, torch, date, rows), got {err!r}\n"
            "Name another file with --baseline."
        ) from err


def _load_run(path: Path) -> FamilyRun:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema") != SCHEMA:
            raise ValueError(f"another schema than {SCHEMA}")
        rows = [
            Row(row["case"], row["bytes"], {name: Timing(**timing) for name, timing in row["times"].items()})
            for row in data.pop("rows")
        ]
        return FamilyRun(rows=rows, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise ResultError(
            f"benchmarks: {path}: expected the results of one family, got {err!r}\n"
            "Move the file away, or run the family again."
        ) from err
