"""The plot of a test: how long every request waited for its first token and in all."""

from __future__ import annotations

from pathlib import Path

from sgl_kernel_rebuild.deploy.api_test import Report
from sgl_kernel_rebuild.errors import HostError


def draw(report: Report, path: Path) -> None:
    """Draw the concurrent requests as two cumulative curves, seconds against share of requests.

    Raises:
        HostError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise HostError(
            "plot: expected matplotlib, got no such package\n"
            "Install it with: pip install 'sgl-kernel-rebuild[deploy]'"
        ) from err
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    samples = report.concurrent or report.single
    for label, values in (
        ("first token", sorted(sample.first_token for sample in samples)),
        ("whole answer", sorted(sample.total for sample in samples)),
    ):
        shares = [100 * (number + 1) / len(values) for number in range(len(values))]
        axes.step(values, shares, where="post", marker=".", label=label)
    axes.set(xlabel="seconds", ylabel="% of requests", ylim=(0, 105))
    axes.set_xlim(left=0)
    axes.set_title(f"{report.model}: {len(samples)} requests, {report.concurrency or 1} at a time")
    axes.grid(alpha=0.3)
    if samples:
        axes.legend()
    figure.savefig(path, dpi=120)
