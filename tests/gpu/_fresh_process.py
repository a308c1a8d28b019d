"""What has to be the first thing that a process does with the package: ``python _fresh_process.py NAME``.

Run as a script by test_runtime.py, one new interpreter each; exit code 0 means that the checks held.
"""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch

import sgl_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gpu._samples import SAMPLES, Sample

DEVICE = "cuda"
THREADS = 8


def make_samples() -> list[Sample]:
    samples = [make(DEVICE) for make in SAMPLES.values()]
    torch.cuda.synchronize()
    return samples


def assert_like_eager(samples: list[Sample], where: str) -> None:
    """The results that are there now, against those of a call in this thread, outside any graph."""
    torch.cuda.synchronize()
    for name, sample in zip(SAMPLES, samples, strict=True):
        results = sample.results()
        sample.restore()
        sample.call()
        for result, expected in zip(results, sample.written, strict=True):
            assert not torch.isnan(expected).any(), f"{name}, eager: NaN"
            assert torch.equal(result, expected), f"{name}: other values {where} than in a plain call"


def graph() -> None:
    """The first call of every function is recorded, not run: its kernels are loaded during the capture."""
    samples = make_samples()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        for sample in samples:
            sample.call()
    for sample in samples:
        for result, before in zip(sample.results(), sample._before, strict=True):
            assert torch.equal(result, before) or result.isnan().all(), "the capture ran the call"
    recorded.replay()
    assert_like_eager(samples, "from a graph")


def threads() -> None:
    """Eight threads make the first calls at once; none of them has used CUDA before."""
    samples = [make_samples() for _ in range(THREADS)]
    barrier = threading.Barrier(THREADS)
    errors: list[BaseException] = []

    def work(own: list[Sample]) -> None:
        try:
            barrier.wait()
            for sample in own:
                sample.call()
            torch.cuda.synchronize()
        except BaseException as err:
            errors.append(err)

    workers = [threading.Thread(target=work, args=(own,)) for own in samples]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    for own in samples:
        assert_like_eager(own, "from a thread")


def importing() -> None:
    """Importing the package leaves CUDA alone: a process may still fork, or choose its devices."""
    assert sgl_kernel.__version__
    assert not torch.cuda.is_initialized()


if __name__ == "__main__":
    {"graph": graph, "threads": threads, "importing": importing}[sys.argv[1]]()
