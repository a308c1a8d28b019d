"""The atlas: what each release exports, and the nearest thing where it does not."""

from __future__ import annotations

import lzma
import time
from importlib import resources

import pytest
from sgl_kernel_rebuild.abi._demangle import demangle, qualified_name
from sgl_kernel_rebuild.abi.atlas import Atlas
from sgl_kernel_rebuild.errors import BinaryError

NEW = "_ZN3c104cuda9SetDeviceEab"
OLD = "_ZN3c104cuda9SetDeviceEa"


@pytest.fixture(scope="module")
def atlas():
    return Atlas.load()


def test_covers_every_release_in_order(atlas):
    assert atlas.releases[:4] == ("2.5.0", "2.5.1", "2.6.0", "2.7.0")
    assert atlas.releases[-1] == "2.15.0"
    assert len(atlas.releases) == 16
    assert len(atlas) > 200_000
    assert atlas.from_release("2.7.0")[:3] == ("2.7.0", "2.7.1", "2.8.0")


def test_package_data_stays_small():
    data = resources.files("sgl_kernel_rebuild.abi") / "data" / "torch_exports.txt.xz"
    assert len(data.read_bytes()) < 1.5e6


def test_knows_when_set_device_changed(atlas):
    assert atlas.first_release(NEW) == "2.8.0"
    assert atlas.exports(NEW) == atlas.from_release("2.8.0")
    assert atlas.exports(OLD)[:4] == ("2.5.0", "2.5.1", "2.6.0", "2.7.0")
    assert atlas.library(NEW) == "libc10_cuda.so"
    assert atlas.needs_cuda(NEW)
    assert not atlas.needs_cuda("aoti_torch_empty_strided")


def test_nearest_has_the_same_name_and_other_parameters(atlas):
    assert [demangle(name) for name in atlas.nearest(NEW, "2.7.0")] == ["c10::cuda::SetDevice(signed char)"]
    assert atlas.nearest(NEW, "2.8.0") == ()
    # A C function has no parameters in its name, an unknown name no relatives.
    assert atlas.nearest("aoti_torch_library_def", "2.6.0") == ()
    assert atlas.nearest("_ZN3c104cuda16NoSuchThingAtAllEv", "2.7.0") == ()


def test_nearest_of_constructors_methods_and_operators(atlas):
    logger = atlas.nearest("_ZN3c1013MessageLoggerC1EPKcii", "2.10.0")
    assert [demangle(name) for name in logger] == [
        "c10::MessageLogger::MessageLogger(char const*, int, int, bool)"
    ]
    current = atlas.nearest("_ZN2at4cuda24getCurrentCUDABlasHandleEv", "2.12.1")
    assert "at::cuda::getCurrentCUDABlasHandle(bool)" in map(demangle, current)
    for symbol in ("_ZN2atplERKNS_6TensorES2_", "_ZTVN3c105ErrorE", "_ZNK3c106SymIntcvbEv"):
        assert isinstance(atlas.nearest(symbol, "2.7.0"), tuple)


def test_unknown_symbols_are_exported_by_none(atlas):
    assert atlas.exports("no_such_symbol") == ()
    assert atlas.first_release("no_such_symbol") is None
    assert atlas.library("no_such_symbol") is None
    assert "no_such_symbol" not in atlas
    assert OLD in atlas
    assert OLD[:-1] not in atlas


def test_resolve_takes_a_local_version_and_refuses_strangers(atlas):
    assert atlas.resolve("2.7.0+cu126") == "2.7.0"
    for stranger in ("1.13.0", "latest"):
        with pytest.raises(BinaryError, match=f"atlas: torch {stranger}: expected one of 2.5.0, "):
            atlas.resolve(stranger)


def test_loads_fast():
    data = (resources.files("sgl_kernel_rebuild.abi") / "data" / "torch_exports.txt.xz").read_bytes()
    start = time.process_time()
    Atlas._parse("torch_exports.txt.xz", data)
    assert time.process_time() - start < 5  # 0.2 s on an idle machine of 2026


@pytest.mark.parametrize(
    "data", [b"", b"not xz", lzma.compress(b"hello\n"), lzma.compress(b"# torch 2.7.0\n# tables liba.so\n")]
)
def test_refuses_what_is_no_atlas(tmp_path, data):
    path = tmp_path / "exports.txt.xz"
    path.write_bytes(data)
    with pytest.raises(BinaryError, match=r"exports\.txt\.xz"):
        Atlas.load(path)


def test_refuses_an_atlas_that_is_not_there(tmp_path):
    with pytest.raises(BinaryError, match="cannot be read"):
        Atlas.load(tmp_path / "none.xz")


def test_reads_an_atlas_of_another_making(tmp_path):
    text = "# torch 3.0 3.1\n# lib liba.so libb.so\n# symbol, mask, lib\na 3 0\nb 2 1\n"
    path = tmp_path / "small.xz"
    path.write_bytes(lzma.compress(text.encode()))
    atlas = Atlas.load(path)
    assert (len(atlas), atlas.exports("a"), atlas.exports("b")) == (2, ("3.0", "3.1"), ("3.1",))
    assert atlas.library("b") == "libb.so"


@pytest.mark.parametrize(
    ("symbol", "declaration", "name"),
    [
        (NEW, "c10::cuda::SetDevice(signed char, bool)", "c10::cuda::SetDevice"),
        (
            "_ZNK2at10TensorBase8data_ptrIfEEPT_v",
            "float* at::TensorBase::data_ptr<float>() const",
            "at::TensorBase::data_ptr<float>",
        ),
        ("_ZN2atplERKNS_6TensorES2_", "at::operator+(at::Tensor const&, at::Tensor const&)", "at::operator+"),
        ("_ZNK3c106SymIntclEv", "c10::SymInt::operator()() const", "c10::SymInt::operator()"),
        ("_ZN12_GLOBAL__N_11fEv", "(anonymous namespace)::f()", "(anonymous namespace)::f"),
        ("aoti_torch_check", "aoti_torch_check", "aoti_torch_check"),
        ("_Znonsense", "_Znonsense", "_Znonsense"),
    ],
)
def test_demangles(symbol, declaration, name):
    assert demangle(symbol) == declaration
    assert qualified_name(declaration) == name
