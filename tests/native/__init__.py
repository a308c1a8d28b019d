"""Tests of the C++ host code without torch, CUDA or a GPU: the Python module ``native`` plays both.

``cpp/`` holds the module: csrc is linked with a fake torch and a fake driver. A new op family adds its
bindings to ``cpp/pure.cpp``, its parameters to ``cpp/fake_driver.h`` and ``cpp/module.cpp``, and a
``test_<family>.py``.
"""
