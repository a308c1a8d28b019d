"""Which symbols must come from torch, and what the certificate makes of them."""

from __future__ import annotations

import json

import pytest
from sgl_kernel_rebuild.abi import Atlas, certify
from sgl_kernel_rebuild.abi._elffile import SharedObject, Symbol, read_shared_object
from sgl_kernel_rebuild.abi.certificate import describe_releases, read_symbol_list
from sgl_kernel_rebuild.abi.symbols import classify
from sgl_kernel_rebuild.errors import BinaryError

NEW = "_ZN3c104cuda9SetDeviceEab"

# A torch extension in small: C++ and C functions of torch, a class of its own, std, weak references.
EXTENSION = r"""
#include <string>
#include <vector>
namespace c10 { struct Tensor {}; namespace cuda { void SetDevice(signed char, bool); }
  namespace detail { __attribute__((weak)) void optional_hook(); } void never_existed(int); }
extern "C" int aoti_torch_get_dtype(void*, int*);
__attribute__((visibility("default"))) void run(std::string& s, std::vector<int>& v) {
  c10::cuda::SetDevice(1, true);
  if (c10::detail::optional_hook) c10::detail::optional_hook();
  aoti_torch_get_dtype(nullptr, v.data());
  s.append("x");
  if (v.empty()) c10::never_existed(0);
}
"""


@pytest.fixture(scope="module")
def extension(compile_so):
    return read_shared_object(compile_so(EXTENSION))


def kinds(shared_object, **options):
    return {need.symbol.name: need.kind for need in classify(shared_object, Atlas.load(), **options)}


def test_tells_torch_from_the_system(extension):
    found = kinds(extension)
    assert found[NEW] == "torch"
    assert found["aoti_torch_get_dtype"] == "torch"
    assert found["_ZN3c1013never_existedEi"] == "torch"
    assert {kind for name, kind in found.items() if "basic_string" in name} == {"system"}
    assert not any("optional_hook" in name for name in found), "a weak reference may stay unresolved"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("_ZN2at4_ops5copy_4callERNS_6TensorERKS2_b", "torch"),
        ("_ZTVN3c105ErrorE", "torch"),
        ("_ZNR5torch7Library5_implEPKcONS_11CppFunctionENS_17_RegisterOrVerifyE", "torch"),
        ("_ZN3c10lsERSoNS_10DeviceTypeE", "torch"),
        ("_ZN6caffe28TypeMeta13typeMetaDatasEv", "torch"),
        ("_ZNSt6vectorIN2at6TensorESaIS1_EE17_M_realloc_insertEv", "torch"),
        ("THPVariable_Wrap", "torch"),
        # torch 2.5.1 also exports this instance of libstdc++'s.
        ("_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE9_M_createERmm", "system"),
        ("_ZNSt6vectorI6StatusSaIS0_EE5clearEv", "system"),
        ("_ZNSi4readEPcl", "system"),
        ("_ZdlPvm", "system"),
        ("__cxa_throw", "system"),
        ("PyModule_Create2", "python"),
        ("_Py_Dealloc", "python"),
        ("cudaLaunchKernel", "cuda"),
        ("cuLaunchKernel", "cuda"),
        ("ncclAllReduce", "cuda"),
        ("memcpy", "other"),
    ],
)
def test_kinds_of_names(name, kind):
    assert kinds(SharedObject("list", undefined=(Symbol(name),)), has_needed=False) == {name: kind}


def test_a_versioned_symbol_is_never_torchs():
    versioned = Symbol("aoti_torch_get_dtype", "LIB_1", "libother.so")
    assert kinds(SharedObject("a", undefined=(versioned,))) == {"aoti_torch_get_dtype": "system"}
    runtime = Symbol("cudaFree", "libcudart.so.12", "libcudart.so.12")
    assert kinds(SharedObject("a", undefined=(runtime,))) == {"cudaFree": "cuda"}


def test_what_torch_bundles_is_torchs_only_if_nobody_else_can_have_it():
    bundled = (Symbol("cpuinfo_initialize"),)
    assert (
        kinds(SharedObject("a", needed=("libtorch_cpu.so", "libc.so.6"), undefined=bundled))[
            "cpuinfo_initialize"
        ]
        == "torch"
    )
    assert (
        kinds(SharedObject("a", needed=("libopenblas.so.0",), undefined=bundled))["cpuinfo_initialize"]
        == "other"
    )


def test_a_sibling_of_the_wheel_can_provide():
    user = SharedObject("user.so", undefined=(Symbol("_ZN2at6fooBarEv"),))
    provider = SharedObject("provider.so", defined=(Symbol("_ZN2at6fooBarEv"),))
    assert certify("w", [user, provider]).fits == Atlas.load().releases
    assert certify("w", [user]).fits == ()


def test_certificate_of_an_extension(extension):
    certificate = certify("demo", [extension])
    missing = {item.symbol: item for item in certificate.missing("2.7.0")}
    assert set(missing) == {NEW, "_ZN3c1013never_existedEi"}
    assert missing[NEW].demangled == "c10::cuda::SetDevice(signed char, bool)"
    assert missing[NEW].first_release == "2.8.0"
    assert missing[NEW].nearest == ("_ZN3c104cuda9SetDeviceEa",)
    assert missing[NEW].history == "first exported by 2.8.0"
    assert missing["_ZN3c1013never_existedEi"].history == "exported by no release here"
    assert certificate.fits == ()
    assert certificate.conclusion.startswith("demo does not fit torch 2.5.0 to 2.15.0; under 2.7.0 it lacks ")
    assert certificate.objects[0].needs_cuda_torch


def test_certificate_of_symbols_that_one_release_has():
    undefined = (Symbol(NEW), Symbol("_ZNK3c106SymInt6sym_neERKS0_"))
    certificate = certify("demo", [SharedObject("demo", undefined=undefined)])
    assert certificate.fits == ("2.8.0",)
    assert certificate.conclusion == (
        "demo fits torch 2.8.0 only; under 2.7.0 it lacks c10::cuda::SetDevice(signed char, bool),"
        " first exported by 2.8.0 (nearest there: c10::cuda::SetDevice(signed char))."
    )
    (late,) = certificate.missing("2.9.1")
    assert late.history == "last exported by 2.8.0"


def test_certificate_of_c_functions_of_2_7(extension):
    undefined = (Symbol("aoti_torch_library_init_def"),)
    certificate = certify("demo", [SharedObject("demo", undefined=undefined)])
    assert certificate.fits == Atlas.load().from_release("2.7.0")
    assert certificate.conclusion.startswith("demo fits torch 2.7.0 to 2.15.0; under 2.6.0 it lacks ")
    narrowed = certify("demo", [SharedObject("demo", undefined=undefined)], releases=["2.7.0"])
    assert narrowed.conclusion == "demo fits torch 2.7.0."
    assert "no symbol of torch" in certify("demo", [SharedObject("demo")]).conclusion


def test_certificate_as_json_is_stable(extension):
    document = certify("demo", [extension], releases=["2.7.0", "2.8.0"]).to_json()
    assert document["schema"] == 1
    assert document["releases"] == [
        {"torch": "2.7.0", "verdict": "missing", "missing": 2},
        {"torch": "2.8.0", "verdict": "missing", "missing": 1},
    ]
    (entry,) = document["objects"]
    assert entry["missing"]["2.7.0"][1]["nearest"] == ["c10::cuda::SetDevice(signed char)"]
    assert json.loads(json.dumps(document)) == document


def test_describe_releases_draws_neighbours_together():
    releases = ["2.5.1", "2.6.0", "2.7.0", "2.7.1", "2.8.0"]
    assert describe_releases(["2.5.1", "2.7.0", "2.7.1", "2.8.0"], releases) == "2.5.1, 2.7.0 to 2.8.0"
    assert describe_releases([], releases) == ""


def test_reads_lists_of_symbols(tmp_path):
    path = tmp_path / "symbols.txt"
    path.write_text(f"# comment\n{NEW}\n\n   U memcpy@GLIBC_2.14\n w __gmon_start__\nplain # end\n")
    found = read_symbol_list(path)
    assert found.undefined == (
        Symbol(NEW),
        Symbol("__gmon_start__", is_weak=True),
        Symbol("memcpy", "GLIBC_2.14"),
        Symbol("plain"),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"two words\n", r"list\.txt:1: expected one symbol a line, got 'two words'"),
        (b"good\nb\xc3\xa4d\n", r"list\.txt: expected a \.so, a \.whl or a text file"),
        (b"good\nb\x07d\n", r"list\.txt:2: expected one symbol a line"),
    ],
)
def test_refuses_what_is_no_list_of_symbols(tmp_path, content, message):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(BinaryError, match=message):
        read_symbol_list(path)


def test_what_torch_links_and_exports_is_torchs_unless_a_stranger_may_have_it():
    """fbgemm's symbols are in libtorch_cpu from 2.9.0 on; a library of the same wheel is no stranger."""
    symbol = "_ZN6fbgemm19Float16ToFloat_avx2EPKtPfm"
    needed = ("libtorch_cpu.so", "asmjit.so", "libc.so.6")
    user = SharedObject("pkg/fbgemm.so", needed=needed, undefined=(Symbol(symbol),))
    neighbour = SharedObject("pkg/asmjit.so", soname="asmjit.so")
    assert certify("x", [user, neighbour]).fits[0] == "2.9.0"
    assert certify("x", [user]).fits[0] == "2.5.0"  # asmjit.so may have it
    definer = SharedObject("pkg/asmjit.so", soname="asmjit.so", defined=(Symbol(symbol),))
    assert certify("x", [user, definer]).fits[0] == "2.5.0"
