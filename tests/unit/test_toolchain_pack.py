"""Fat binaries and the build record, from real machine code."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sgl_kernel_rebuild
from sgl_kernel_rebuild.errors import ToolchainError
from sgl_kernel_rebuild.toolchain import Image, Kind, _fatbin, build_record, compile_device, pack
from sgl_kernel_rebuild.toolchain._compile import make_compiler
from sgl_kernel_rebuild.toolchain._nvcc import Nvcc

CODE: dict[Kind, list[str]] = {"cubin": ["80", "90a", "120"], "ptx": ["120"]}


def _available_compilers() -> list[str]:
    try:
        Nvcc().identity()
    except ToolchainError:
        return ["nvrtc"]
    return ["nvrtc", "nvcc"]


class Built:
    """One source compiled for several architectures."""

    def __init__(self, folder: Path, compiler: str) -> None:
        self.folder, self.compiler = folder, compiler
        self.root = folder / "project"
        self.root.mkdir(parents=True)
        (self.root / "pyproject.toml").write_text("")
        (self.root / "k.cu").write_text('extern "C" __global__ void k(int* x) { *x = 1; }\n')
        self.images: list[Image] = []
        self.reports: list[Path] = []
        for kind, archs in CODE.items():
            for arch in archs:
                output, report = folder / f"k.{arch}.{kind}", folder / f"k.{arch}.{kind}.json"
                compile_device(
                    self.root / "k.cu",
                    compiler=compiler,
                    arch=arch,
                    kind=kind,
                    output=output,
                    report_path=report,
                )
                self.images.append(Image(kind, arch, output))
                self.reports.append(report)

    def record(self, **changes: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "compiler": make_compiler(self.compiler).identity(),
            "cxx": "g++ 12.2.0",
            "version": "0.3.7+cu128.1",
            "archs": CODE["cubin"],
            "ptx": CODE["ptx"],
            "source_root": self.root,
        }
        return build_record(changes.pop("reports", self.reports), **{**arguments, **changes})


@pytest.fixture(scope="module", params=_available_compilers())
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLK_CACHE_DIR", str(folder / "cache"))
        return Built(folder, request.param)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Built:
    monkeypatch.setenv("SGLK_CACHE_DIR", str(tmp_path / "cache"))
    return Built(tmp_path / "built", "nvrtc")


def read_fatbin(data: bytes) -> list[tuple[str, int, bytes]]:
    """Return kind, architecture and content of each entry: a 16-byte header, then entries with headers of
    their own (kind at 0, header size at 4, padded content size at 8, architecture at 28)."""
    magic, _, header, size = struct.unpack_from("<IHHQ", data)
    assert magic == 0xBA55ED50
    assert header + size == len(data)
    entries = []
    at = header
    while at < len(data):
        kind, _, entry_header, content = struct.unpack_from("<HHIQ", data, at)
        (arch,) = struct.unpack_from("<I", data, at + 28)
        start = at + entry_header
        entries.append(({1: "ptx", 2: "cubin"}[kind], arch, data[start : start + content]))
        at = start + content
    return entries


def test_round_trip(shared: Built, tmp_path: Path) -> None:
    pack(shared.images, tmp_path / "k.fatbin", compiler=shared.compiler)
    entries = read_fatbin((tmp_path / "k.fatbin").read_bytes())
    assert len(entries) == len(shared.images)
    for image, (kind, arch, content) in zip(shared.images, entries, strict=True):
        assert (kind, arch) == (image.kind, int(image.arch.rstrip("a")))
        if kind == "cubin":
            expected = Path(image.path).read_bytes()
            assert content[: len(expected)] == expected
            assert not content[len(expected) :].strip(b"\0")
        else:  # the packers drop its comments
            assert b".target sm_120" in content
            assert b".entry k(" in content


def test_order_and_folder_do_not_matter(shared: Built, tmp_path: Path) -> None:
    moved: list[Image] = []
    for image in shared.images:
        shutil.copy(image.path, tmp_path)
        moved.insert(0, Image(image.kind, image.arch, tmp_path / Path(image.path).name))
    pack(shared.images, tmp_path / "one" / "k.fatbin", compiler=shared.compiler)
    pack(moved, tmp_path / "two" / "k.fatbin", compiler=shared.compiler)
    assert (tmp_path / "one" / "k.fatbin").read_bytes() == (tmp_path / "two" / "k.fatbin").read_bytes()


def test_cubin_of_another_architecture_is_refused(shared: Built, tmp_path: Path) -> None:
    (tmp_path / "k.fatbin").write_bytes(b"of an earlier run")
    with pytest.raises(ToolchainError, match="mismatch"):
        pack([Image("cubin", "90a", shared.images[0].path)], tmp_path / "k.fatbin", compiler=shared.compiler)
    assert not (tmp_path / "k.fatbin").exists()


def test_pack_nothing(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="pack: expected at least one cubin or PTX"):
        pack([], tmp_path / "k.fatbin")


def test_pack_over_an_image(built: Built) -> None:
    image = built.images[0]
    with pytest.raises(ToolchainError, match=r"output: .*: expected a new file, got an input"):
        pack([image], image.path)
    assert Path(image.path).exists()


def test_pack_one_twice(built: Built, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="pack: cubin 80: expected once, got twice"):
        pack([built.images[0], *built.images], tmp_path / "k.fatbin")


def test_pack_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"pack: .*none\.cubin: cannot be read: No such file"):
        pack([Image("cubin", "80", tmp_path / "none.cubin")], tmp_path / "k.fatbin")


@pytest.mark.parametrize(("kind", "expected"), [("cubin", "an ELF cubin"), ("ptx", "PTX text")])
def test_pack_what_is_neither(tmp_path: Path, kind: str, expected: str) -> None:
    (tmp_path / "k").write_bytes(b"nonsense")
    with pytest.raises(ToolchainError, match=rf"pack: .*k: expected {expected}, got b'nonsense'"):
        pack([Image(kind, "80", tmp_path / "k")], tmp_path / "k.fatbin")  # type: ignore[arg-type]


def test_pack_by_a_packer_that_packs_nothing(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fatbin, "_pack_nvfatbin", lambda *arguments: b"nothing")
    with pytest.raises(ToolchainError, match=r"pack: .*k\.fatbin: the packer returned no fat binary"):
        pack(built.images, tmp_path / "k.fatbin", compiler="nvrtc")
    assert not (tmp_path / "k.fatbin").exists()


def test_pack_with_unknown_compiler(built: Built, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="compiler: expected nvrtc or nvcc, got 'clang'"):
        pack(built.images, tmp_path / "k.fatbin", compiler="clang")


def test_record_names_everything_and_nothing_of_the_machine(shared: Built) -> None:
    record = shared.record()
    assert record["device_compiler"]["name"] == shared.compiler
    assert record["cxx_compiler"] == "g++ 12.2.0"
    assert list(record["inputs"]) == ["k.cu"]
    assert list(record["sources"]["k.cu"]["code"]) == ["sm_80", "sm_90a", "sm_120", "compute_120"]
    assert str(shared.folder) not in json.dumps(record)
    assert shared.record(reports=shared.reports[::-1]) == record


def test_record_does_not_depend_on_folder_or_run(built: Built, tmp_path: Path) -> None:
    again = Built(tmp_path / "elsewhere", "nvrtc")
    assert json.dumps(again.record()) == json.dumps(built.record())


def test_record_follows_the_code(built: Built) -> None:
    before = built.record()
    data = json.loads(built.reports[0].read_text())
    data["sha256"] = "0" * 64
    built.reports[0].write_text(json.dumps(data))
    after = built.record()
    assert after["device_code_sha256"] != before["device_code_sha256"]
    assert after["device_source_sha256"] == before["device_source_sha256"]


def change_report(built: Built, **changes: object) -> None:
    data = json.loads(built.reports[0].read_text())
    built.reports[0].write_text(json.dumps({**data, **changes}))


def test_record_of_changed_source(built: Built) -> None:
    (built.root / "k.cu").write_text("// later\n")
    with pytest.raises(ToolchainError, match=r"record: k\.cu: changed since it was compiled"):
        built.record()


def test_record_with_wrong_root(built: Built, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"record: .*k\.cu: cannot be read: .*\nGive the root"):
        built.record(source_root=tmp_path)


def test_record_with_uncovered_architecture(built: Built) -> None:
    with pytest.raises(ToolchainError, match="record: architecture 86: expected cubin code, got none"):
        built.record(archs=["80", "86"])
    with pytest.raises(ToolchainError, match="record: architecture 90: expected ptx code, got none"):
        built.record(ptx=["90"])


def test_record_with_one_report_twice(built: Built) -> None:
    with pytest.raises(ToolchainError, match=r"record: k\.cu sm_80: expected once, got twice"):
        built.record(reports=[*built.reports, built.reports[0]])


def test_record_of_another_compiler(built: Built) -> None:
    change_report(built, compiler={"name": "nvrtc", "version": "12.9.1", "headers": {}})
    with pytest.raises(ToolchainError, match=r"record: k\.cu: expected code by nvrtc .*, got nvrtc 12\.9\.1"):
        built.record()


def test_record_of_mixed_options(built: Built) -> None:
    change_report(built, options=["-O0"])
    with pytest.raises(ToolchainError, match=r"record: k\.cu .*: expected options .*, got"):
        built.record()


def test_record_of_mixed_contents(built: Built) -> None:
    change_report(built, inputs={"k.cu": "0" * 64})
    with pytest.raises(ToolchainError, match=r"record: k\.cu: expected one content"):
        built.record()


@pytest.mark.parametrize("text", ["", "{}", "[]", '"x"', "null", "\0"])
def test_record_of_what_is_no_report(built: Built, text: str) -> None:
    built.reports[0].write_text(text)
    with pytest.raises(ToolchainError, match=r"record: .*: expected a compile report"):
        built.record()


def test_record_of_a_report_of_another_kind(built: Built) -> None:
    report = json.loads(built.reports[0].read_text())
    built.reports[0].write_text(json.dumps({**report, "kind": "object"}))
    with pytest.raises(ToolchainError, match="expected a compile report, which this is not"):
        built.record()


def test_record_takes_headers_outside_the_project_as_they_were_seen(built: Built) -> None:
    for path in built.reports:
        report = json.loads(path.read_text())
        path.write_text(json.dumps({**report, "inputs": {**report["inputs"], "<include 0>/x.cuh": "0" * 64}}))
    assert built.record()["inputs"]["<include 0>/x.cuh"] == "0" * 64


def test_record_of_missing_report(built: Built, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"record: .*none\.json: cannot be read"):
        built.record(reports=[tmp_path / "none.json"])


def test_command_line(built: Built, tmp_path: Path) -> None:
    package = Path(sgl_kernel_rebuild.__file__).parent.parent

    def run(*arguments: object) -> None:
        subprocess.run(
            [sys.executable, "-m", "sgl_kernel_rebuild.toolchain", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(package)},
            check=True,
        )

    cubins = [f"{image.arch}={image.path}" for image in built.images if image.kind == "cubin"]
    ptx = [f"{image.arch}={image.path}" for image in built.images if image.kind == "ptx"]
    run("pack", "--compiler", "nvrtc", "--output", tmp_path / "k.fatbin", "--cubin", *cubins, "--ptx", *ptx)
    assert len(read_fatbin((tmp_path / "k.fatbin").read_bytes())) == len(built.images)
    run(
        *("record", "--compiler", "nvrtc", "--output", tmp_path / "record.json", "--cxx", "g++ 12.2.0"),
        *("--version", "0.3.7+cu128.1", "--archs", "80;90a;120", "--ptx", "120"),
        *("--source-root", built.root, "--report", *built.reports),
    )
    assert json.loads((tmp_path / "record.json").read_text()) == built.record()
