"""Real shared objects, real device code, and wheels made of them: nothing here is committed as a binary."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import io
import json
import re
import subprocess
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sgl_kernel_rebuild.index import publish
from sgl_kernel_rebuild.remote import _index
from sgl_kernel_rebuild.toolchain import Image, Kind, build_record, compile_device, pack
from sgl_kernel_rebuild.toolchain._compile import make_compiler
from sgl_kernel_rebuild.wheel.api import load_snapshot
from sgl_kernel_rebuild.wheel.archive import record_digest

CompileSo = Callable[..., Path]
WriteWheel = Callable[..., None]
MakeWheel = Callable[..., Path]

VERSION = "0.3.7+cu128.1"
REMOTE_TAG = "cp310-abi3-manylinux_2_28_x86_64"
LIBRARY = "sgl_kernel/libsgl_kernel.so"

# What a library of ours looks like to the gate: C functions of torch, a schema, device code in its section.
HOST_SOURCE = r"""
extern "C" int aoti_torch_library_init_def(const char*, const char*, unsigned, void**);
extern "C" int aoti_torch_library_def(void*, const char*, const int*, long);
namespace {
const char* const kSchemas[] = {"scale(Tensor(a!) out, Tensor input) -> ()",
                                "add(Tensor a, Tensor b) -> Tensor"};
__attribute__((constructor)) void start() {
  void* library = nullptr;
  aoti_torch_library_init_def("demo", __FILE__, 1, &library);
  for (const char* schema : kSchemas) aoti_torch_library_def(library, schema, nullptr, 0);
}
}  // namespace
asm(".section .nv_fatbin,\"a\",@progbits\n.balign 16\n.incbin \"device.fatbin\"\n.previous");
"""
DEVICE_SOURCE = r"""
extern "C" __global__ void scale_f32(float* out, const float* in) {
  __shared__ float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = 2 * tile[63 - threadIdx.x];
}
extern "C" __global__ void scale_f16(unsigned short* out, const unsigned short* in) { out[0] = in[0]; }
extern "C" __global__ void __launch_bounds__(1024, 2) add_f32(const float* a, float* out, int n) {
  float x[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i] = a[i * n];
#pragma unroll 1
  for (int j = 0; j < n; ++j) {
#pragma unroll
    for (int i = 0; i < 64; ++i) x[i] = x[(i + 7) % 64] * x[i] + j;
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i] = x[i];
}
"""
OPS = {
    "scale": {"family": "demo", "kernels": ["scale_f16", "scale_f32"]},
    "add": {"family": "demo", "kernels": ["add_*"]},
}
CUBINS, PTX = ["80", "86", "90a", "120"], ["120"]


class DeviceCode:
    """``csrc/kernels/demo.cu`` compiled by the pinned NVRTC, packed, and on record."""

    def __init__(self, folder: Path) -> None:
        source = folder / "csrc" / "kernels" / "demo.cu"
        source.parent.mkdir(parents=True)
        source.write_text(DEVICE_SOURCE)
        (folder / "pyproject.toml").write_text("")
        images: list[Image] = []
        self.cubins: dict[str, bytes] = {}
        self.reports: dict[str, Any] = {}
        kinds: list[tuple[Kind, str]] = [("cubin", arch) for arch in CUBINS] + [("ptx", arch) for arch in PTX]
        for kind, arch in kinds:
            output, report = folder / f"{arch}.{kind}", folder / f"{arch}.{kind}.json"
            compile_device(
                source, arch=arch, kind=kind, output=output, report_path=report, source_root=folder
            )
            images.append(Image(kind, arch, output))
            self.reports[f"{kind} {arch}"] = json.loads(report.read_text())
            if kind == "cubin":
                self.cubins[arch] = output.read_bytes()
        pack(images, folder / "demo.fatbin")
        self.fatbin = (folder / "demo.fatbin").read_bytes()
        self.record = build_record(
            [folder / f"{arch}.{kind}.json" for kind, arch in kinds],
            compiler=make_compiler("nvrtc").identity(),
            cxx="GNU 12.2.0",
            version=VERSION,
            archs=CUBINS,
            ptx=PTX,
            source_root=folder,
        )


@pytest.fixture(scope="session")
def device_code(tmp_path_factory: pytest.TempPathFactory) -> DeviceCode:
    folder = tmp_path_factory.mktemp("device")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLK_CACHE_DIR", str(folder / "cache"))
        return DeviceCode(folder / "project")


@pytest.fixture(scope="session")
def compile_so(tmp_path_factory: pytest.TempPathFactory) -> CompileSo:
    """Compile C++ to a shared object in a folder of its own; ``files`` lie beside the source."""

    def compile_(
        source: str,
        *flags: str,
        name: str = "libdemo.so",
        soname: str | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Path:
        folder = tmp_path_factory.mktemp("so")
        (folder / "source.cpp").write_text(source)
        for file, data in (files or {}).items():
            (folder / file).write_bytes(data)
        command = ["g++", "-shared", "-fPIC", "-fvisibility=hidden", "-o", name, "source.cpp", *flags]
        if soname:
            command.append(f"-Wl,-soname,{soname}")
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        return folder / name

    return compile_


@pytest.fixture(scope="session")
def torch_stub(compile_so: CompileSo) -> Path:
    """A ``libtorch_cpu.so`` to link with: what torch is at build time."""
    names = ["aoti_torch_library_init_def", "aoti_torch_library_def"]
    source = "".join(
        f'extern "C" __attribute__((visibility("default"))) void {name}() {{}}\n' for name in names
    )
    return compile_so(source, "-nostdlib", name="libtorch_cpu.so", soname="libtorch_cpu.so")


@pytest.fixture(scope="session")
def library(compile_so: CompileSo, torch_stub: Path, device_code: DeviceCode) -> bytes:
    """A library that the gate lets through."""
    return compile_so(
        HOST_SOURCE,
        "-O2",
        "-s",
        "-static-libgcc",
        f"-L{torch_stub.parent}",
        "-ltorch_cpu",
        "-nodefaultlibs",
        "-lc",
        name="libsgl_kernel.so",
        soname="libsgl_kernel.so",
        files={"device.fatbin": device_code.fatbin},
    ).read_bytes()


@pytest.fixture(scope="session")
def package() -> dict[str, bytes]:
    """Python source with exactly the published API, one half of it not provided."""
    return {
        f"{name.replace('.', '/')}.py": text.encode() for name, text in sources_of(load_snapshot()).items()
    }


@pytest.fixture(scope="session")
def members(library: bytes, package: dict[str, bytes], device_code: DeviceCode) -> dict[str, bytes]:
    """All the files of a raw wheel but RECORD, as the native build makes it."""
    info = f"sgl_kernel-{VERSION}.dist-info"
    metadata = (
        f"Metadata-Version: 2.4\nName: sgl-kernel\nVersion: {VERSION}\n"
        "Requires-Python: >=3.10\nRequires-Dist: torch>=2.7.0\n\n"
    )
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: py3-none-linux_x86_64\n"
    return {
        **package,
        LIBRARY: library,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": wheel.encode(),
        f"{info}/sgl_kernel/build_record.json": json.dumps(device_code.record).encode(),
        f"{info}/sgl_kernel/ops.json": json.dumps(OPS).encode(),
    }


@pytest.fixture
def make_wheel(tmp_path: Path, members: dict[str, bytes]) -> MakeWheel:
    """Write a raw wheel and return its path.

    ``changes`` replace members (None drops one, ``INFO`` stands for the dist-info folder); ``record``
    replaces the content of RECORD.
    """

    def make(
        changes: Mapping[str, bytes | None] | None = None,
        *,
        tag: str = "py3-none-linux_x86_64",
        record: bytes | None = None,
        folder: str = "raw",
        name: str = f"sgl_kernel-{VERSION}",
        mtime: tuple[int, int, int, int, int, int] = (2026, 1, 2, 3, 4, 6),
    ) -> Path:
        info = f"sgl_kernel-{VERSION}.dist-info"
        content: dict[str, bytes | None] = dict(members)
        if tag != "py3-none-linux_x86_64":
            content[f"{info}/WHEEL"] = members[f"{info}/WHEEL"].replace(
                b"py3-none-linux_x86_64", tag.encode()
            )
        content |= {key.replace("INFO", info): value for key, value in (changes or {}).items()}
        kept = {key: value for key, value in content.items() if value is not None}
        path = tmp_path / folder / f"{name}-{tag}.whl"
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, value in kept.items():
                archive.writestr(zipfile.ZipInfo(key, mtime), value, zipfile.ZIP_DEFLATED)
            archive.writestr(f"{info}/RECORD", record if record is not None else record_of(kept, info))
        return path

    return make


def record_of(members: Mapping[str, bytes], info: str) -> bytes:
    lines = io.StringIO()
    for name, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.write(f"{name},sha256={digest},{len(content)}\n")
    lines.write(f"{info}/RECORD,,\n")
    return lines.getvalue().encode()


def sources_of(snapshot: dict[str, Any]) -> dict[str, str]:
    """Return module -> source of a package whose API is the snapshot's."""
    modules = snapshot["modules"]
    packages = {module.rpartition(".")[0] for module in modules} | {"sgl_kernel"}
    sources = {
        "sgl_kernel._missing": "def not_provided(function):\n    return function\n",
    }
    for module, names in modules.items():
        lines = ["import torch", "from sgl_kernel._missing import not_provided"]
        # Definitions first: an alias of the same module refers to one.
        for name, entry in sorted(names.items(), key=lambda item: "alias" in item[1]):
            if "alias" in entry:
                origin, _, target = entry["alias"].rpartition(".")
                lines.append(
                    f"{name} = {target}" if origin == module else f"from {origin} import {target} as {name}"
                )
            elif entry["kind"] == "class":
                lines += _class_source(name, entry)
            else:
                lines += ["@not_provided"] if len(name) % 2 else []
                lines.append(f"def {name}({_parameters(entry)}): ...")
        key = f"{module}.__init__" if module in packages else module
        sources[key] = "\n".join(lines) + "\n"
    return sources


def _class_source(name: str, entry: dict[str, Any]) -> list[str]:
    lines = [f"class {name}:"]
    own = {"parameters": [{"name": "self", "kind": "positional or keyword"}, *entry["parameters"]]}
    lines.append(f"    def __init__({_parameters(own)}): ...")
    for member, inner in entry["members"].items():
        lines.append(
            f"    {member} = 0"
            if inner["kind"] == "attribute"
            else f"    def {member}({_parameters(inner)}): ..."
        )
    return lines


def _parameters(entry: dict[str, Any]) -> str:
    stars = {"variadic positional": "*", "variadic keyword": "**"}
    parts: list[str] = []
    for parameter in entry["parameters"]:
        if parameter["kind"] == "keyword-only" and "*" not in "".join(parts):
            parts.append("*")
        default = f"={parameter['default']}" if "default" in parameter else ""
        parts.append(f"{stars.get(parameter['kind'], '')}{parameter['name']}{default}")
    return ", ".join(parts)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with byte ranges (RFC 9110, 14.2), and counts the bytes of wheels that it sent."""

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self._serve(has_body=False)

    def do_GET(self):
        self._serve(has_body=True)

    def _serve(self, *, has_body):
        path = self.translate_path(self.path)
        if self.path.endswith("/"):
            path += "index.html"
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            self.send_error(404)
            return
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        status, start, end = 200, 0, len(data)
        if wanted and self.server.has_ranges:
            status = 206
            start = int(wanted[1]) if wanted[1] else max(len(data) - int(wanted[2]), 0)
            end = min(int(wanted[2]) + 1, len(data)) if wanted[1] and wanted[2] else len(data)
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if path.endswith(".html") else "application/zip")
        self.send_header("Content-Length", str(end - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if has_body:
            if path.endswith(".whl"):
                self.server.sent += end - start
            # A client that has what it wants hangs up.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(data[start:end])


@pytest.fixture
def serve(monkeypatch):
    """Serve a folder of wheels as the index that pip is configured with; return the server."""
    with contextlib.ExitStack() as stack:

        def start(folder):
            publish(sorted(folder.glob("*.whl")), folder / "index")
            handler = functools.partial(_Handler, directory=str(folder / "index"))
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            server.sent, server.has_ranges = 0, True
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            _index._configured_index.cache_clear()
            stack.callback(_index._configured_index.cache_clear)
            return server

        yield start


@pytest.fixture(scope="session")
def write_wheel() -> WriteWheel:
    """Write a small wheel: folder, name, version, members, tag."""

    def write(
        folder: Path, name: str, version: str, members: Mapping[str, bytes], tag: str = REMOTE_TAG
    ) -> None:
        info = f"{name}-{version}.dist-info"
        members = {
            **members,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
        }
        lines = [f"{key},{record_digest(data)},{len(data)}" for key, data in members.items()]
        with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w", zipfile.ZIP_DEFLATED) as archive:
            for key, data in members.items():
                archive.writestr(key, data)
            archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]))

    return write
