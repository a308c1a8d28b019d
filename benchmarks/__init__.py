"""Timings of every op on a GPU, beside torch and other packages: ``python -m benchmarks.run OUT_DIR``."""
