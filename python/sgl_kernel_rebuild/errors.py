"""What can go wrong in the factory: one class, and one exit code, per kind of failure.

Only the command line turns these into an exit; library code raises them, chained with ``from``.
A message reads ``what: where: expected X, got Y`` and its last line says what to do next.
"""

from __future__ import annotations

__all__ = [
    "BinaryError",
    "CompileError",
    "DeployError",
    "FactoryError",
    "GateError",
    "HostError",
    "PublishError",
    "ToolchainError",
]


class FactoryError(Exception):
    """Base of every error that the factory raises on purpose."""

    exit_code = 1


class ToolchainError(FactoryError):
    """A compiler, a header or a library of the toolchain is missing or unusable."""

    exit_code = 3


class CompileError(FactoryError):
    """Device code did not compile; the message holds the compiler's whole log."""

    exit_code = 4


class BinaryError(FactoryError):
    """A shared object, a wheel or a fat binary could not be read; the message names the file."""

    exit_code = 5


class GateError(FactoryError):
    """A wheel broke one or more of the contracts; the message lists every violation."""

    exit_code = 6


class PublishError(FactoryError):
    """The index refused or could not complete a publication; what was there is untouched."""

    exit_code = 7


class HostError(FactoryError):
    """This machine lacks something that the command needs (a GPU, a container engine, a torch)."""

    exit_code = 8


class DeployError(FactoryError):
    """A server could not be planned, started, reached or stopped; the message holds its own error."""

    exit_code = 9
