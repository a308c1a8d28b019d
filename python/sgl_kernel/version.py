"""The level of the sgl-kernel API that this package provides.

The version of the installed distribution, which says more, is ``importlib.metadata.version("sgl-kernel")``.
"""

__all__ = ["__version__"]

__version__ = "0.3.7"
