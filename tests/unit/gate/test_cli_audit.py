"""``audit`` of every kind of target: verdicts, findings, exit codes, messages."""

from __future__ import annotations

import json
import sys
import zipfile

import pytest
from click.testing import CliRunner
from sgl_kernel_rebuild import doctor
from sgl_kernel_rebuild.abi import certify
from sgl_kernel_rebuild.abi._elffile import SharedObject, Symbol
from sgl_kernel_rebuild.audit import AuditReport
from sgl_kernel_rebuild.cli import main
from sgl_kernel_rebuild.doctor import Gpu
from sgl_kernel_rebuild.wheel.archive import record_digest

ENTRY = 'extern "C" __attribute__((visibility("default"))) '
# What torch 2.8.0 was the first to export.
TORCH = "namespace c10::cuda { void SetDevice(signed char, bool); }\n"
SOURCES = {
    "late": TORCH + ENTRY + "void f() { c10::cuda::SetDevice(0, true); }",
    "plain": ENTRY + "int g(int x) { return x + 1; }",
    "stable": 'extern "C" void* PyLong_FromLong(long);\n'
    + ENTRY
    + "void* f() { return PyLong_FromLong(1); }",
    "private": 'extern "C" void* _PyLong_New(long);\n' + ENTRY + "void* f() { return _PyLong_New(1); }",
    "vectorcall": (
        'extern "C" void* PyObject_Vectorcall(void*, void*, unsigned long, void*);\n'
        + ENTRY
        + "void* f(void* x) { return PyObject_Vectorcall(x, x, 0, x); }"
    ),
    "memcpy": (
        'extern "C" void* memcpy(void*, const void*, unsigned long);\n'
        + ENTRY
        + "void f(void* a, void* b, unsigned long n) { memcpy(a, b, n); }"
    ),
    "string": (
        "#include <string>\n" + ENTRY + "unsigned long f(const char* a, const char* b)"
        " { std::string text(a); text.append(b); return text.size(); }"
    ),
}


@pytest.fixture(scope="module")
def objects(compile_so):
    """Name -> the bytes of a small shared object."""
    return {name: compile_so(source, "-O1").read_bytes() for name, source in SOURCES.items()}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "ask_driver", lambda: (None, "", ()))


def run(*arguments):
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


def findings(*arguments):
    """Return (kind, where, message) of each finding, and the exit code."""
    result = run(*arguments, "--json")
    found = [item for report in json.loads(result.stdout)["reports"] for item in report["findings"]]
    return [(item["kind"], item["where"], item["message"]) for item in found], result.exit_code


def write_wheel(folder, members, tag="cp310-abi3-manylinux_2_28_x86_64", requires=""):
    info = "demo-1.0.dist-info"
    members = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n{requires}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
    }
    lines = [f"{name},{record_digest(data)},{len(data)}" for name, data in members.items()]
    folder.mkdir(exist_ok=True)
    path = folder / f"demo-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]))
    return path


def test_a_shared_object_that_one_release_lacks(tmp_path, objects):
    path = tmp_path / "ext.so"
    path.write_bytes(objects["late"])
    result = run(path)
    assert result.exit_code == 10
    lacking = "c10::cuda::SetDevice(signed char, bool)"
    assert f"under 2.7.0 it lacks {lacking}, first exported by 2.8.0" in result.output
    assert run(path, "--torch", "2.8.0").exit_code == 0
    message = f"does not load under torch 2.7.0 to 2.7.1: 2.7.0 lacks {lacking}"
    assert findings(path) == ([("torch", "ext.so", message)], 10)


def test_objects_side_by_side(tmp_path, objects):
    wheel = write_wheel(tmp_path, {"a.so": objects["late"], "b.so": objects["plain"]})
    result = run(wheel)
    (row,) = [line for line in result.output.splitlines() if line.startswith("│ 2.7.0 ")]
    assert "misses 1" in row
    # b.so uses nothing of torch: it has no column of its own.
    assert "│ b.so          │ 0             │ 2.5.0 to 2.15.0 │" in result.output
    document = json.loads(run(wheel, "--json").stdout)["reports"][0]
    assert [item["fits"][0] for item in document["objects"]] == ["2.8.0", "2.5.0"]
    assert document["tags"] == ["cp310-abi3-manylinux_2_28_x86_64"]


@pytest.mark.parametrize(
    ("name", "tag", "source", "expected"),
    [
        ("m.abi3.so", "cp310-abi3", "stable", ""),
        ("m.abi3.so", "cp310-abi3", "private", "is named abi3 and uses what no stable ABI has: _PyLong_New"),
        (
            "m.abi3.so",
            "cp310-abi3",
            "vectorcall",
            "uses the stable ABI of Python 3.12, in a wheel for 3.10 and later",
        ),
        ("m.abi3.so", "cp312-abi3", "vectorcall", ""),
        (
            "m.cpython-310-x86_64-linux-gnu.so",
            "cp310-abi3",
            "stable",
            "is for CPython 3.10 alone, in a wheel tagged cp310-abi3",
        ),
        (
            "m.cpython-311-x86_64-linux-gnu.so",
            "cp312-cp312",
            "private",
            "is for CPython 3.11, in a wheel tagged cp312-cp312",
        ),
        ("m.cpython-312-x86_64-linux-gnu.so", "cp312-cp312", "private", ""),
        (
            "m.so",
            "py3-none",
            "stable",
            "uses Python's C API, in a wheel tagged py3-none; its name claims no abi3",
        ),
        ("m.so", "py3-none", "plain", ""),
    ],
)
def test_what_is_promised_of_python(tmp_path, objects, name, tag, source, expected):
    wheel = write_wheel(tmp_path, {name: objects[source]}, f"{tag}-manylinux_2_28_x86_64")
    assert findings(wheel) == (([("python", name, expected)], 13) if expected else ([], 0))


def test_what_is_promised_of_the_system(tmp_path, objects):
    wheel = write_wheel(tmp_path, {"m.so": objects["memcpy"]}, "py3-none-manylinux1_x86_64")
    assert findings(wheel) == (
        [("tag", "m.so", "needs GLIBC_2.14; manylinux1_x86_64 promises GLIBC_2.5 at most")],
        12,
    )
    both = "py3-none-manylinux2010_x86_64.manylinux_2_28_x86_64"
    assert findings(write_wheel(tmp_path, {"m.so": objects["memcpy"]}, both))[1] == 12
    assert findings(write_wheel(tmp_path, {"m.so": objects["memcpy"]}, "py3-none-linux_x86_64")) == ([], 0)
    wheel = write_wheel(tmp_path, {"m.so": objects["string"]}, "py3-none-manylinux2014_x86_64")
    ((kind, _, message),), code = findings(wheel)
    assert (kind, code) == ("tag", 12)
    assert "needs GLIBCXX_3.4.21" in message
    assert "manylinux2014_x86_64 promises GLIBCXX_3.4.19" in message
    assert findings(write_wheel(tmp_path, {"m.so": objects["string"]}))[1] == 0


def test_code_for_a_gpu(make_wheel, monkeypatch):
    wheel = make_wheel()
    assert findings(wheel, "--gpu", "RTX 5090", "--gpu", "sm_80", "--gpu", "9.0") == ([], 0)
    expected = "no code for sm_75: it carries sm_80, sm_86, sm_90a, sm_120, compute_120"
    assert findings(wheel, "--gpu", "T4") == ([("gpu", "sgl_kernel/libsgl_kernel.so", expected)], 11)
    gpus = json.loads(run(wheel, "--json").stdout)["reports"][0]["objects"][0]["gpus"]
    assert gpus == {
        "sm_80": "sm_80", "sm_86": "sm_86", "sm_87": "sm_86", "sm_89": "sm_86", "sm_90": "sm_90a",
        "sm_100": "", "sm_103": "", "sm_120": "sm_120", "sm_121": "sm_120",
    }  # fmt: skip
    assert "No code for sm_100 (B200), sm_103 (B300)." in run(wheel).output
    # Where another object has some of it, the sentence says so.
    found = (
        SharedObject("a.so", undefined=(Symbol("aoti_torch_x"),)),
        SharedObject("b.so", undefined=(Symbol("aoti_torch_x"),)),
    )
    report = AuditReport(certify("x", found), {"a.so": ("sm_80", "sm_90"), "b.so": ("sm_90", "sm_120")})
    assert report.without_code(["80", "90", "100", "120"]) == (["100"], ["80", "120"])
    assert "Parts of it have none for sm_80, sm_86, sm_87, sm_89, sm_120, sm_121." in report.conclusion
    # Without --gpu the GPUs of this machine are asked about.
    monkeypatch.setattr(doctor, "ask_driver", lambda: (None, "", (Gpu("Tesla T4", "75", 1 << 34),)))
    assert findings(wheel)[1] == 11
    result = run(wheel, "--gpu", "Voodoo")
    assert result.exit_code == 2
    assert "expected sm_120, 12.0 or one of V100, " in result.output


def test_a_requirement_that_admits_what_does_not_load(tmp_path, objects):
    wheel = write_wheel(tmp_path, {"m.so": objects["late"]}, requires="Requires-Dist: torch>=2.6\n")
    (torch, note), code = findings(wheel)
    assert (torch[0], note[0], code) == ("torch", "note", 10)
    assert note[2].startswith("asks for torch>=2.6, which admits torch 2.6.0 to 2.7.1: ")
    pinned = write_wheel(tmp_path, {"m.so": objects["late"]}, requires="Requires-Dist: torch==2.8.0\n")
    assert findings(pinned, "--torch", "2.8.0") == ([], 0)


def test_the_lowest_exit_code_wins(tmp_path, objects):
    members = {"m.cpython-310-x86_64-linux-gnu.so": objects["stable"], "n.so": objects["memcpy"]}
    wheel = write_wheel(tmp_path, members, "cp310-abi3-manylinux1_x86_64")
    found, code = findings(wheel)
    assert ([kind for kind, _, _ in found], code) == (["tag", "python"], 12)
    assert run(wheel, tmp_path / "none.so").exit_code == 5


def test_a_folder(tmp_path, objects):
    (tmp_path / "lib" / "deep").mkdir(parents=True)
    (tmp_path / "lib" / "deep" / "late.so.1").write_bytes(objects["late"])
    (tmp_path / "lib" / "late.so").symlink_to("deep/late.so.1")
    (tmp_path / "lib" / "plain.so").write_bytes(objects["plain"])
    (tmp_path / "lib" / "script.so").write_text("INPUT(plain.so)")
    (tmp_path / "lib" / "gone.so").symlink_to("nowhere")
    write_wheel(tmp_path / "lib" / "wheels", {"m.so": objects["plain"]})
    result = run(tmp_path / "lib", "--json")
    assert result.exit_code == 10
    folder, wheel = json.loads(result.stdout)["reports"]
    assert folder["subject"] == str(tmp_path / "lib")
    assert len(folder["objects"]) == 2  # a file once, whatever links lead to it
    assert wheel["subject"] == "demo 1.0"
    (tmp_path / "lib" / "broken.so").write_bytes(b"\x7fELF")
    (tmp_path / "lib" / "bad-1.0-py3-none-any.whl").write_bytes(b"no zip")
    result = run(tmp_path / "lib")
    assert result.exit_code == 5
    assert "broken.so: expected an ELF header of 64 bytes" in result.stderr
    assert "bad-1.0-py3-none-any.whl: File is not a zip file" in result.stderr
    assert "does not load under torch 2.7.0" in result.stdout
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty")
    assert result.exit_code == 5
    assert "expected shared objects or wheels in this folder, got none" in result.stderr


def install(monkeypatch, folder, members, metadata=""):
    """Put a distribution where importlib.metadata finds it."""
    info = folder / "demo_ext-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Demo_Ext\nVersion: 2.0\n{metadata}\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: cp310-abi3-manylinux1_x86_64\n")
    lines = []
    for name, data in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        lines.append(f"{name},,\n")
    (info / "RECORD").write_text("".join(lines))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


def test_an_installed_distribution(tmp_path, monkeypatch, objects):
    members = {"demo/late.so": objects["late"], "demo/m.so": objects["memcpy"]}
    install(monkeypatch, tmp_path, members, "Requires-Dist: torch==2.8.0\n")
    result = run("demo-ext", "--json")
    assert result.exit_code == 10
    (report,) = json.loads(result.stdout)["reports"]
    assert report["subject"] == "demo-ext 2.0"
    assert report["requires_torch"] == "torch==2.8.0"
    assert [item["kind"] for item in report["findings"]] == ["torch", "tag"]


def test_an_installed_distribution_without_binaries(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, {"demo/pure.py": b""})
    result = run("demo-ext")
    assert result.exit_code == 5
    assert "audit: demo-ext: expected shared objects in the installed 2.0, got none" in result.stderr


def test_a_wheel_that_leads_out_of_itself_or_swells_is_refused_by_name(tmp_path, objects):
    path = write_wheel(tmp_path, {"../../evil.so": objects["plain"]})
    result = run(path)
    assert result.exit_code == 5
    assert f"wheel: {path}: member '../../evil.so': expected a path within the wheel" in result.stderr
    assert not (tmp_path.parents[1] / "evil.so").exists()
    path = write_wheel(tmp_path, {"m.so": objects["plain"], "demo/zeros.bin": bytes(80 << 20)})
    result = run(path)
    assert result.exit_code == 5
    assert "83886080 of them member 'demo/zeros.bin': refused as a zip bomb" in result.stderr


@pytest.mark.parametrize("target", ["no-such-distribution", "what is this?", "==1.0"])
def test_what_is_no_target(target):
    result = run(target)
    assert result.exit_code == 5
    assert f"audit: {target}: expected a file, a folder, an installed distribution or NAME==VERSION" in (
        result.stderr
    )
