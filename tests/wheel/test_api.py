"""The installed package against the published API: names, signatures, and what a call does."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import sgl_kernel
import torch
from sgl_kernel import NotProvidedError, flash_attn, fused_moe, memory, scalar_type, spatial, utils
from sgl_kernel.testing import rotary_embedding

REPOSITORY = Path(__file__).resolve().parents[2]
SNAPSHOT = REPOSITORY / "python/sgl_kernel_rebuild/wheel/data/sgl_kernel-0.3.7.api.json"
MODULES: dict[str, dict[str, Any]] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))["modules"]
PACKAGE = Path(sgl_kernel.__file__).parent


def paths(kind: str) -> list[str]:
    return [
        f"{module}.{name}"
        for module, names in MODULES.items()
        for name, entry in names.items()
        if ("alias" if "alias" in entry else entry["kind"]) == kind
    ]


def look_up(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def entry_of(path: str) -> dict[str, Any]:
    module, _, name = path.rpartition(".")
    entry: dict[str, Any] = MODULES[module][name]
    return entry


def test_the_installed_package_is_under_test() -> None:
    assert PACKAGE.parent != REPOSITORY / "python"


@pytest.mark.parametrize("module", MODULES)
def test_modules_import(module: str) -> None:
    importlib.import_module(module)


@pytest.mark.parametrize("path", paths("alias"))
def test_aliases(path: str) -> None:
    assert look_up(path) is look_up(entry_of(path)["alias"])


def is_same_default(published: str | None, parameter: inspect.Parameter) -> bool:
    if published is None or parameter.default is parameter.empty:
        return published is None and parameter.default is parameter.empty
    try:
        value = ast.literal_eval(published)
    except ValueError:  # torch.bfloat16, NanRepr.IEEE_754
        return published in (repr(parameter.default), str(parameter.default))
    return type(value) is type(parameter.default) and bool(value == parameter.default)


def assert_same_parameters(path: str, published: list[dict[str, str]], function: Callable[..., Any]) -> None:
    if [parameter["kind"] for parameter in published] == ["variadic positional", "variadic keyword"]:
        return  # it passes everything on to the function of that name in another module
    own = list(inspect.signature(function).parameters.values())
    assert [parameter.name for parameter in own[: len(published)]] == [x["name"] for x in published], path
    for theirs, ours in zip(published, own, strict=False):
        assert ours.kind.description == theirs["kind"], f"{path}: {ours.name}"
        assert is_same_default(theirs.get("default"), ours), f"{path}: {ours.name}"
    for extra in own[len(published) :]:
        assert extra.default is not extra.empty, f"{path}: {extra.name}"


@pytest.mark.parametrize("path", paths("function"))
def test_function_signatures(path: str) -> None:
    assert_same_parameters(path, entry_of(path)["parameters"], look_up(path))


@pytest.mark.parametrize("path", paths("class"))
def test_classes(path: str) -> None:
    described, entry = look_up(path), entry_of(path)
    if entry["parameters"]:
        assert_same_parameters(path, entry["parameters"], described)
    for name, member in entry["members"].items():
        assert hasattr(described, name) or name in described.__dataclass_fields__, f"{path}.{name}"
        if member["kind"] == "function":
            function = inspect.getattr_static(described, name)
            function = getattr(function, "__func__", function)
            assert_same_parameters(f"{path}.{name}", member["parameters"], function)


# Every function that is provided, each tested here or in the file of its family.
PROVIDED = {
    *("sgl_kernel.elementwise.rmsnorm", "sgl_kernel.elementwise.gemma_rmsnorm"),
    *("sgl_kernel.elementwise.fused_add_rmsnorm", "sgl_kernel.elementwise.gemma_fused_add_rmsnorm"),
    *("sgl_kernel.elementwise.silu_and_mul", "sgl_kernel.elementwise.gelu_and_mul"),
    "sgl_kernel.elementwise.gelu_tanh_and_mul",
    "sgl_kernel.elementwise.apply_rope_with_cos_sin_cache_inplace",
    *("sgl_kernel.marlin.awq_marlin_repack", "sgl_kernel.marlin.awq_marlin_moe_repack"),
    "sgl_kernel.marlin.gptq_marlin_repack",
    *("sgl_kernel.gemm.awq_dequantize", "sgl_kernel.gemm.gptq_gemm", "sgl_kernel.gemm.gptq_shuffle"),
    *("sgl_kernel.flash_attn.is_fa3_supported", "sgl_kernel.flash_attn.maybe_contiguous"),
    "sgl_kernel.sparse_flash_attn.maybe_contiguous",
    *("sgl_kernel.fused_moe.fused_marlin_moe_fake", "sgl_kernel.fused_moe.get_scalar_type"),
    "sgl_kernel.gemm.gptq_marlin_gemm",
    "sgl_kernel.memory.set_kv_buffer_kernel",
    *("sgl_kernel.attention.merge_state", "sgl_kernel.attention.merge_state_v2"),
    "sgl_kernel.grammar.apply_token_bitmask_inplace_cuda",
    "sgl_kernel.elementwise.downcast_fp8",
    *("sgl_kernel.moe.topk_softmax", "sgl_kernel.moe.moe_fused_gate", "sgl_kernel.moe.moe_align_block_size"),
    *("sgl_kernel.get_sm_available", "sgl_kernel.spatial.get_sm_available"),
    *("sgl_kernel.sampling.top_k_renorm_probs", "sgl_kernel.sampling.top_k_renorm_prob"),
    *("sgl_kernel.sampling.top_p_renorm_probs", "sgl_kernel.sampling.top_p_renorm_prob"),
    *("sgl_kernel.sampling.top_p_sampling_from_probs", "sgl_kernel.sampling.min_p_sampling_from_probs"),
    "sgl_kernel.sampling.top_k_mask_logits",
    *(f"sgl_kernel.sampling.top_k_top_p_sampling_from_{kind}" for kind in ("logits", "probs")),
    "sgl_kernel.testing.rotary_embedding.create_inputs",
    "sgl_kernel.top_k.fast_topk",
    *("sgl_kernel.utils.get_cuda_stream", "sgl_kernel.utils.is_arch_support_pdl"),
}


@pytest.mark.parametrize("path", sorted(set(paths("function")) - PROVIDED))
def test_what_is_not_provided_says_so(path: str) -> None:
    function = look_up(path)
    name = f"{function.__module__}.{function.__qualname__}"
    assert name in sgl_kernel.missing()
    with pytest.raises(NotProvidedError) as failure:
        function()
    first, last = str(failure.value).splitlines()
    assert first.startswith(f"{name}: not provided")
    assert "sgl_kernel.missing()" in first
    assert last.startswith("To go on, ")


def test_what_is_provided_is_not_missing() -> None:
    functions = {look_up(path) for path in PROVIDED}
    assert not {f"{x.__module__}.{x.__qualname__}" for x in functions} & set(sgl_kernel.missing())


def test_missing_is_sorted_and_published() -> None:
    names = sgl_kernel.missing()
    assert names == sorted(set(names))
    assert all(name in set(paths("function")) for name in names)


def test_not_provided_is_a_not_implemented_error() -> None:
    assert issubclass(NotProvidedError, NotImplementedError)


def test_versions() -> None:
    assert sgl_kernel.__version__ == "0.3.7"
    assert metadata.version("sgl-kernel").split("+")[0] == "0.3.7"


def test_only_one_package_is_installed() -> None:
    """The published wheel also carries deep_gemm and triton_kernels, which consumers would find."""
    files = metadata.files("sgl-kernel") or []
    top_level = {file.parts[0] for file in files if not file.parts[0].endswith(".dist-info")}
    assert top_level <= {"sgl_kernel", "sgl_kernel.libs"}
    assert (PACKAGE / "py.typed").is_file()


def test_star_import_gives_what_is_listed() -> None:
    namespace: dict[str, Any] = {}
    exec("from sgl_kernel import *", namespace)
    assert set(sgl_kernel.__all__) <= set(namespace)


def test_consumers_take_us_for_a_cuda_build() -> None:
    """SGLang asks whether this operator exists to tell CPU builds apart."""
    assert not hasattr(torch.ops.sgl_kernel, "convert_weight_packed")


def test_the_amx_query_exists() -> None:
    assert torch._C._cpu._is_amx_tile_supported() in (True, False)


def run(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, "-W", "error::UserWarning:sgl_kernel", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_import_is_silent_and_starts_no_cuda() -> None:
    result = run("import sgl_kernel, torch; assert not torch.cuda.is_initialized()")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected the library of the kernels, got no such file"),
        (b"\x7fELF, but no more", f"expected a library that loads under torch {torch.__version__}, got: "),
    ],
)
def test_a_library_that_is_absent_or_broken(tmp_path: Path, content: bytes | None, message: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "sgl_kernel", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    library = tmp_path / "sgl_kernel/libsgl_kernel.so"
    if content is not None:
        library.write_bytes(content)
    result = run("import sgl_kernel", tmp_path)
    assert result.returncode == 1
    assert f"sgl_kernel._library.LibraryError: sgl_kernel: {library}: {message}" in result.stderr


def test_a_namespace_that_is_taken() -> None:
    result = run("import torch; other = torch.library.Library('sgl_kernel', 'DEF'); import sgl_kernel")
    assert result.returncode == 1
    assert "sgl_kernel._library.LibraryError: sgl_kernel: " in result.stderr
    assert "another package that defines torch.ops.sgl_kernel is loaded" in result.stderr


def test_library_error_is_an_import_error() -> None:
    from sgl_kernel._library import LibraryError

    assert issubclass(LibraryError, ImportError)


@pytest.mark.parametrize(("topk", "dim"), [(1, -1), (3, -1), (1, 0), (2, 0)])
def test_fast_topk(topk: int, dim: int, compile_whole: Callable[..., Any]) -> None:
    values = torch.randperm(40).view(4, 10).float()
    expected = torch.sort(values, dim=dim, descending=True)
    for function in (sgl_kernel.fast_topk, compile_whole(sgl_kernel.fast_topk)):
        found, indices = function(values, topk, dim)
        assert torch.equal(found, expected.values.narrow(dim, 0, topk))
        assert torch.equal(indices, expected.indices.narrow(dim, 0, topk))


@pytest.mark.parametrize("fallback", [False, True])
def test_set_kv_buffer_kernel(fallback: bool) -> None:
    k_cache, v_cache = torch.zeros(6, 2, 8), torch.zeros(6, 2, 8)
    k, v, loc = torch.randn(2, 2, 8), torch.randn(2, 2, 8), torch.tensor([4, 1])
    memory.set_kv_buffer_kernel(k_cache, v_cache, loc, k, v, fallback)
    assert torch.equal(k_cache[loc], k)
    assert torch.equal(v_cache[loc], v)
    assert not k_cache[[0, 2, 3, 5]].any()


def test_get_scalar_type() -> None:
    assert fused_moe.get_scalar_type(4, True) is scalar_type.scalar_types.uint4
    assert fused_moe.get_scalar_type(4, False) is scalar_type.scalar_types.uint4b8
    assert fused_moe.get_scalar_type(8, False) is scalar_type.scalar_types.uint8b128


@pytest.mark.parametrize(("num_bits", "has_zp"), [(8, True), (3, False)])
def test_get_scalar_type_of_other_widths(num_bits: int, has_zp: bool) -> None:
    with pytest.raises(ValueError, match=f"^get_scalar_type: num_bits: expected 4 .*, got {num_bits}$"):
        fused_moe.get_scalar_type(num_bits, has_zp)


def test_fused_marlin_moe_fake() -> None:
    hidden, other = torch.empty(3, 16, dtype=torch.float16, device="meta"), torch.empty(0, device="meta")
    result = fused_moe.fused_marlin_moe_fake(hidden, *[other] * 7)
    assert (result.shape, result.dtype, result.device) == (hidden.shape, hidden.dtype, hidden.device)


def test_maybe_contiguous() -> None:
    x = torch.randn(4, 6)
    assert flash_attn.maybe_contiguous(None) is None
    assert flash_attn.maybe_contiguous(x[:, 1:]) is not None
    assert flash_attn.maybe_contiguous(x) is x
    turned = flash_attn.maybe_contiguous(x.t())
    assert turned is not None
    assert turned.stride(-1) == 1
    assert torch.equal(turned, x.t())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    """Pretends that the current GPU has this major capability, and torch this CUDA."""

    class Properties:
        multi_processor_count = 132

        def __init__(self, major: int) -> None:
            self.major = major

    def pretend(major: int, cuda: str) -> None:
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, 0))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: Properties(major))

    return pretend


@pytest.mark.parametrize(
    ("major", "cuda", "is_supported"),
    [
        *((8, "12.3", True), (9, "12.10", True), (9, "13.0", True)),
        *((9, "12.2", False), (9, "11.8", False), (7, "12.8", False), (12, "12.8", False)),
    ],
)
def test_is_fa3_supported(gpu: Callable[..., None], major: int, cuda: str, is_supported: bool) -> None:
    gpu(major, cuda)
    assert flash_attn.is_fa3_supported.__wrapped__() is is_supported


@pytest.mark.parametrize(("major", "is_supported"), [(8, False), (9, True), (12, True)])
def test_is_arch_support_pdl(gpu: Callable[..., None], major: int, is_supported: bool) -> None:
    gpu(major, "12.8")
    assert utils.is_arch_support_pdl.__wrapped__() is is_supported


def test_get_sm_available(gpu: Callable[..., None]) -> None:
    gpu(9, "12.8")
    assert spatial.get_sm_available() == 132


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert flash_attn.is_fa3_supported.__wrapped__() is False
    assert utils.is_arch_support_pdl.__wrapped__() is False


def test_get_cuda_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = type("Stream", (), {"cuda_stream": 7})
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    assert utils.get_cuda_stream() == 7


def test_scratch_buffers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "_cache_buf", {})
    device = torch.device("cpu")
    buffer = utils._get_cache_buf("workspace", 64, device)
    assert (buffer.dtype, buffer.shape) == (torch.uint8, (64,))
    assert utils._get_cache_buf("workspace", 128, device) is buffer
    assert utils._get_cache_buf("other", 128, device) is not buffer


def test_tensor_or_scalar() -> None:
    tensor = torch.ones(2)
    assert utils._to_tensor_scalar_tuple(tensor) == (tensor, 0)
    assert utils._to_tensor_scalar_tuple(0.5) == (None, 0.5)


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("has_offsets", [True, False])
def test_rotary_embedding_for_tests(is_neox: bool, has_offsets: bool) -> None:
    arguments = (64, 32, 128, 10000, is_neox, torch.bfloat16)
    native = rotary_embedding.RotaryEmbedding(*arguments)
    kernel = rotary_embedding.FlashInferRotaryEmbedding(*arguments)
    inputs = rotary_embedding.create_inputs(64, 2, 5, "cpu", torch.bfloat16, 4, 2)
    offsets = torch.full((10,), 7) if has_offsets else None
    query, key = inputs["query"], inputs["key"]
    expected = native.forward_native(inputs["pos_ids"], query, key, offsets)
    pool = rotary_embedding.MHATokenToKVPool(2, 64)
    pool.set_kv_buffer(inputs["out_cache_loc"], expected[1].view(-1, 2, 64), inputs["value"].view(-1, 2, 64))
    other = rotary_embedding.MHATokenToKVPool(2, 64)
    fused = sgl_kernel.FusedSetKVBufferArg(
        *(inputs["value"], other.k_buffer[0].view(-1, 128), other.v_buffer[0].view(-1, 128)),
        *(None, None, inputs["out_cache_loc"]),
    )
    result = kernel.forward_cuda(inputs["pos_ids"], query, key, fused, offsets)
    assert result[0] is query
    assert result[1] is key
    for actual, wanted in zip(
        (*result, *other.k_buffer, *other.v_buffer), (*expected, *pool.k_buffer, *pool.v_buffer), strict=True
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-2, atol=1e-2)
