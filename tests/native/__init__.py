"""Tests of the C++ host code without torch, CUDA or a GPU: a module of the tests' own plays both."""
