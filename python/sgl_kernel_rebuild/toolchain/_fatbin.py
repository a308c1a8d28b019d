"""Packs cubins and PTX of one source into a fat binary."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sgl_kernel_rebuild.errors import ToolchainError

from . import _wheels
from ._files import refuse_overwriting, remove_output, write_output
from ._model import Kind, check_arch

# First word of a fat binary, little endian (fatbinary_section.h of the CUDA toolkit names the wrapper's;
# this one is the container's).
FATBIN_MAGIC = (0xBA55ED50).to_bytes(4, "little")


@dataclass(frozen=True)
class Image:
    """One compiled output for one architecture."""

    kind: Kind
    arch: str
    path: str | os.PathLike[str]

    def read(self) -> bytes:
        """Return the content, checked to be what ``kind`` says."""
        try:
            data = Path(self.path).read_bytes()
        except OSError as err:
            raise ToolchainError(
                f"pack: {os.fspath(self.path)}: cannot be read: {err.strerror or err}\nCompile it first."
            ) from err
        is_right = (
            data.startswith(b"\x7fELF") if self.kind == "cubin" else b".target" in data and b"\0" not in data
        )
        if not is_right:
            expected = "an ELF cubin" if self.kind == "cubin" else "PTX text"
            raise ToolchainError(
                f"pack: {os.fspath(self.path)}: expected {expected}, got {data[:16]!r}\nCompile it again."
            )
        return data


def pack(
    images: Sequence[Image],
    output: str | os.PathLike[str],
    *,
    compiler: str = "nvrtc",
    nvcc: str | None = None,
) -> None:
    """Write a fat binary that holds ``images``, uncompressed so that any ELF reader can audit them.

    nvFatbin packs what nvrtc compiled; ``fatbinary`` of the toolkit packs what its nvcc compiled.

    Raises:
        ToolchainError: no images, one twice, one that is not what it should be, or the packer failed.
    """
    refuse_overwriting(Path(output), [image.path for image in images])
    remove_output(Path(output))
    if not images:
        raise ToolchainError("pack: expected at least one cubin or PTX, got none\nGive --cubin or --ptx.")
    ordered = sorted(
        images, key=lambda image: (image.kind, int(check_arch(image.arch).rstrip("af")), image.arch)
    )
    for first, second in pairwise(ordered):
        if (first.kind, first.arch) == (second.kind, second.arch):
            raise ToolchainError(
                f"pack: {first.kind} {first.arch}: expected once, got twice\nDrop one of them."
            )
    contents = [image.read() for image in ordered]
    name = Path(output).stem
    if compiler == "nvrtc":
        data = _pack_nvfatbin(ordered, contents, name)
    elif compiler == "nvcc":
        data = _pack_fatbinary(ordered, contents, name, nvcc)
    else:
        raise ToolchainError(
            f"compiler: expected nvrtc or nvcc, got {compiler!r}\nCorrect SGLK_DEVICE_COMPILER."
        )
    if not data.startswith(FATBIN_MAGIC):
        raise ToolchainError(
            f"pack: {os.fspath(output)}: the packer returned no fat binary\nReinstall the packer."
        )
    write_output(Path(output), data)


def _pack_nvfatbin(images: Sequence[Image], contents: Sequence[bytes], name: str) -> bytes:
    path = _wheels.library(_wheels.NVFATBIN, r"libnvfatbin\.so\.\d+")
    try:
        library = ctypes.CDLL(path)
    except OSError as err:
        raise ToolchainError(
            f"nvfatbin: {path}: cannot be loaded: {err}\nReinstall nvidia-nvfatbin-cu12."
        ) from err
    library.nvFatbinGetErrorString.restype = ctypes.c_char_p

    def check(status: int, what: str) -> None:
        if status != 0:
            reason = (library.nvFatbinGetErrorString(status) or b"unknown error").decode()
            raise _packer_error(f"nvfatbin: {what}", f"{reason} ({status})")

    handle = ctypes.c_void_p()
    options = (ctypes.c_char_p * 2)(b"-64", b"-compress=false")
    check(library.nvFatbinCreate(ctypes.byref(handle), options, ctypes.c_size_t(len(options))), name)
    try:
        for image, data in zip(images, contents, strict=True):
            arch, identifier = image.arch.encode(), name.encode()
            if image.kind == "cubin":
                status = library.nvFatbinAddCubin(handle, data, ctypes.c_size_t(len(data)), arch, identifier)
            else:
                # The size of PTX counts its final NUL.
                status = library.nvFatbinAddPTX(
                    handle, data + b"\0", ctypes.c_size_t(len(data) + 1), arch, identifier, b""
                )
            check(status, os.fspath(image.path))
        size = ctypes.c_size_t()
        check(library.nvFatbinSize(handle, ctypes.byref(size)), name)
        buffer = ctypes.create_string_buffer(size.value)
        check(library.nvFatbinGet(handle, buffer), name)
        return buffer.raw
    finally:
        library.nvFatbinDestroy(ctypes.byref(handle))


def _pack_fatbinary(images: Sequence[Image], contents: Sequence[bytes], name: str, nvcc: str | None) -> bytes:
    from ._nvcc import Nvcc, run

    tool = Nvcc(nvcc).fatbinary()
    with tempfile.TemporaryDirectory(prefix="sglk-fatbinary-") as scratch:
        command = [tool, "-64", "--compress=false", f"--ident={name}", f"--create={name}.fatbin"]
        for image, data in zip(images, contents, strict=True):
            # Copies under names of our own: fatbinary splits its arguments at commas.
            inner = f"{image.kind}_{image.arch}"
            Path(scratch, inner).write_bytes(data)
            kind = "elf" if image.kind == "cubin" else "ptx"
            command.append(f"--image3=kind={kind},sm={image.arch},file={inner}")
        done = run(command, cwd=scratch)
        output = Path(scratch, f"{name}.fatbin")
        if done.returncode != 0 or not output.is_file():
            log = (done.stdout + done.stderr).strip()
            raise _packer_error(f"fatbinary: {name}", log or f"exit status {done.returncode}")
        return output.read_bytes()


def _packer_error(where: str, reason: str) -> ToolchainError:
    return ToolchainError(f"{where}: {reason}\nCompile the images again for the architectures given here.")
