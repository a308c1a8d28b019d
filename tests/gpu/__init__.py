"""Tests that run the kernels: one file per op family, float64 references beside the tests."""
