"""``python -m benchmarks.report OUT_DIR [--baseline FILE]``: report.md and roofline.png.

Two kinds of ratio, never mixed: over a peer it is *measured*, both sides in one run on one machine; over the
baseline file it comes from another run on the same type of machine, and is left out on any other GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ._results import (
    SUBJECT,
    Baseline,
    FamilyRun,
    ResultError,
    Row,
    geometric_mean,
    load_baseline,
    load_runs,
)

__all__ = ["BASELINE", "main", "markdown", "plot", "write"]

BASELINE = Path(__file__).with_name("baseline.json")
OTHER_RUN = "other run, same machine type"
NONE = "-"
STYLES = {
    "norm": ("o", "tab:blue"),
    "activation": ("s", "tab:orange"),
    "rope": ("^", "tab:green"),
    "marlin_gemm": ("D", "tab:red"),
    "awq": ("P", "tab:brown"),
    "sampling": ("X", "tab:pink"),
    "merge": ("v", "tab:purple"),
    "moe": ("*", "tab:gray"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description="Table and plot of a run."
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder with <family>.json")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="figures to compare with")
    options = parser.parse_args(arguments)
    try:
        write(options.out_dir, options.baseline)
    except ResultError as err:
        print(f"error: {err}", file=sys.stderr)
        return 8
    return 0


def write(folder: Path, baseline_path: Path = BASELINE) -> None:
    """Writes report.md and roofline.png beside the results."""
    runs, baseline = load_runs(folder), load_baseline(baseline_path)
    temporary = folder / "report.md.tmp"
    temporary.write_text(markdown(runs, baseline), encoding="utf-8")
    os.replace(temporary, folder / "report.md")
    plot(runs, baseline, folder / "roofline.png")


def markdown(runs: Sequence[FamilyRun], baseline: Baseline) -> str:
    sections = [heading(runs, baseline), summary(runs, baseline)]
    sections += [family_section(run, baseline) for run in runs]
    return "\n\n".join(sections) + "\n"


def baseline_speedup(run: FamilyRun, row: Row, baseline: Baseline) -> float | None:
    """How many times faster than the baseline's equal case; None without one, or on another GPU."""
    theirs, ours = baseline.us.get((run.family, row.case)), row.time(SUBJECT)
    if theirs is None or ours is None or run.machine["gpu"] != baseline.gpu:
        return None
    return theirs / ours.us


def heading(runs: Sequence[FamilyRun], baseline: Baseline) -> str:
    described: dict[str, list[str]] = {}
    for run in runs:
        described.setdefault(describe(run), []).append(f"{run.family}, {run.date}")
    origins = "\n".join(f"- {'; '.join(families)}: {text}." for text, families in described.items())
    reading = (
        "Microseconds are the median of the replays of a CUDA graph whose calls rotate among cold inputs; "
        "the spread is the slowest replay less the fastest. GB/s count each input read once and each output "
        "written once. A ratio says how many times faster sgl_kernel is: over a peer it is **measured**, in "
        f"the same run; over {baseline.name} it is from an **{OTHER_RUN}** "
        f"({baseline.gpu}, torch {baseline.torch}, {baseline.date})."
    )
    if any(run.machine["gpu"] != baseline.gpu for run in runs):
        reading += f" Runs on another GPU than {baseline.gpu} are not compared with {baseline.name}."
    picture = "![Achieved memory rate by bytes moved](roofline.png)"
    return "\n\n".join(["# Benchmarks", picture, origins, reading])


def describe(run: FamilyRun) -> str:
    machine = run.machine
    return (
        f"{machine['gpu']}, driver {machine['driver']}, torch {machine['torch']} (CUDA {machine['cuda']}), "
        f"Python {machine['python']}; "
        f"{describe_package(run)}; "
        f"copy rate in the same run {run.ceiling_gbps:.0f} GB/s ({run.ceiling_how}); `{run.command}`"
    )


def describe_package(run: FamilyRun) -> str:
    libraries = [f"`{name}` sha256 `{digest[:16]}`" for name, digest in run.package["libraries"].items()]
    return f"sgl_kernel {run.package['version']} ({', '.join(libraries) or 'no library'})"


def summary(runs: Sequence[FamilyRun], baseline: Baseline) -> str:
    rows = []
    for run in runs:
        ratios = {
            f"{baseline.name} ({OTHER_RUN})": [baseline_speedup(run, row, baseline) for row in run.rows]
        }
        ratios.update({f"{name} (measured)": [row.speedup(name) for row in run.rows] for name in run.peers})
        for name, values in ratios.items():
            known = [value for value in values if value is not None]
            mean = geometric_mean(known)
            if mean is not None:
                rows.append([run.family, name, str(len(known)), f"{mean:.2f}", f"{min(known):.2f}"])
    return "## Geometric means\n\n" + table(
        ["family", "over", "equal cases", "geometric mean", "lowest"], rows, text_columns=2
    )


def family_section(run: FamilyRun, baseline: Baseline) -> str:
    has_baseline = any(baseline_speedup(run, row, baseline) is not None for row in run.rows)
    header = ["case", "µs", "spread", "GB/s", "of copy rate"]
    header += [f"over {baseline.name} ({OTHER_RUN})"] * has_baseline
    header += [f"over {name} (measured)" for name in run.peers]
    rows, errors = [], []
    for row in run.rows:
        ours, rate = row.time(SUBJECT), row.gbps()
        cells = [row.case, NONE, NONE, NONE, NONE]
        if ours is not None and rate is not None:
            share = f"{rate / run.ceiling_gbps:.1%}" if run.ceiling_gbps > 0 else NONE
            cells = [row.case, f"{ours.us:.3f}", f"{ours.spread:.1%}", f"{rate:.1f}", share]
        ratios = [baseline_speedup(run, row, baseline)] * has_baseline
        ratios += [row.speedup(name) for name in run.peers]
        rows.append(cells + [ratio_text(ratio) for ratio in ratios])
        errors += [f"- {row.case}, {name}: {t.error}" for name, t in row.times.items() if t.error]
    lines = [f"## {run.family}", table(header, rows)]
    if run.peers:
        lines.append("Peers: " + "; ".join(f"{name}: {what}" for name, what in run.peers.items()) + ".")
    if errors:
        lines.append("Not timed:\n\n" + "\n".join(errors))
    return "\n\n".join(lines)


def ratio_text(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.2f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; columns after the first ``text_columns`` are aligned to the right."""
    marks = ["---" if column < text_columns else "--:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, marks, *rows])


def points(run: FamilyRun) -> list[tuple[float, float]]:
    """(MB moved, GB/s) of each timed case, in the order of the bytes."""
    rates = [(row.bytes / 1e6, row.gbps()) for row in run.rows]
    return sorted((moved, rate) for moved, rate in rates if rate is not None)


def baseline_points(run: FamilyRun, baseline: Baseline) -> list[tuple[float, float]]:
    """The same for the baseline's figures of equal cases."""
    equal = [(row, baseline_speedup(run, row, baseline)) for row in run.rows]
    return [
        (row.bytes / 1e6, rate / speedup)
        for row, speedup in equal
        if speedup is not None and (rate := row.gbps()) is not None
    ]


def plot(runs: Sequence[FamilyRun], baseline: Baseline, path: Path) -> None:
    """GB/s over bytes moved, a marker a case: filled for sgl_kernel, hollow for the baseline."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), dpi=130, layout="constrained")
    for run in runs:
        marker, color = STYLES.get(run.family, ("D", "tab:purple"))
        if ours := points(run):
            moved, rates = zip(*ours, strict=True)
            axes.scatter(moved, rates, s=38, label=f"{run.family}: sgl_kernel", marker=marker, color=color)
        if theirs := baseline_points(run, baseline):
            moved, rates = zip(*theirs, strict=True)
            label = f"{run.family}: {baseline.name} ({OTHER_RUN})"
            axes.scatter(moved, rates, s=42, label=label, marker=marker, edgecolors=color, facecolors="none")
    ceiling = max(run.ceiling_gbps for run in runs)
    axes.axhline(ceiling, color="black", linewidth=1, linestyle="--")
    axes.annotate(
        f"copy rate of the same run, {ceiling:.0f} GB/s",
        (1, ceiling),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        xytext=(-6, 4),
        ha="right",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(top=ceiling * 1.6)
    axes.set_xlabel("MB moved per call (each input read once, each output written once)")
    axes.set_ylabel("GB/s achieved")
    machine = runs[0].machine
    axes.set_title(f"Memory rate on one {machine['gpu']}, torch {machine['torch']}")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(loc="lower right", fontsize=8)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, metadata={"Software": None})
    pyplot.close(figure)
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
