"""The wheel factory behind sgl_kernel: compile device code, prove a wheel, publish it.

Pure Python, no torch. ``toolchain`` turns .cu files into fat binaries, ``abi`` and ``wheel`` prove
what came out, ``index`` publishes it, ``cli`` is the command ``sgl-kernel-rebuild``.
"""

__version__ = "0.1.0"
