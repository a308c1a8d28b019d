"""gptq_marlin_gemm against float64.

The bound of an element: half an ulp of every weight (its product with the scale is rounded to the dtype of
a), the rounding of the result, and float32 sums.
"""

from __future__ import annotations

import pytest
import sgl_kernel
import torch
from sgl_kernel import _marlin_gemm as marlin
from sgl_kernel._paths import force_path
from sgl_kernel.scalar_type import ScalarType, scalar_types
from torch import Tensor

from ._compare import assert_close, assert_same_bits
from ._marlin import TYPES, MarlinWeight, random_weight
from ._tensors import DEVICE, HALVES, embed_rows, name, randn

ROWS = (0, 1, 2, 3, 7, 17, 33, 65, 127, 129, 1000)
SHAPES = ((64, 128), (128, 256), (192, 384), (256, 1024), (576, 640), (1088, 2048), (5120, 1024))
GROUP_SIZES = (-1, 32, 64, 128)
# The path that every GPU has, and this one's own for 4-bit weights.
PATHS = ("generic", "sm90") if torch.cuda.get_device_capability() == (9, 0) else ("generic",)
KINDS = [(type_, path) for type_ in TYPES for path in (PATHS if type_.size_bits == 4 else PATHS[:1])]


def product(weight: MarlinWeight, a: Tensor, c: Tensor | None = None) -> Tensor:
    return sgl_kernel.gptq_marlin_gemm(*weight.arguments(a, c), use_fp32_reduce=True)


def assert_product(result: Tensor, a: Tensor, dense: Tensor, bias: Tensor | None = None) -> None:
    expected, magnitude = a.double() @ dense, a.double().abs() @ dense.abs()
    if bias is not None:
        expected = expected + bias.double()
    epsilon = torch.finfo(a.dtype).eps
    slack = (0.5 * epsilon + 2.0**-20) * magnitude + epsilon * expected.abs()
    assert_close(result, expected, slack=slack, label="gptq_marlin_gemm")


def check(weight: MarlinWeight, m: int, dtype: torch.dtype, path: str = "auto") -> None:
    a = randn(m, weight.size_k, dtype=dtype)
    with force_path(path):
        result = product(weight, a)
    assert (result.shape, result.dtype) == ((m, weight.size_n), dtype)
    assert_product(result, a, weight.dense())
    assert not weight.workspace.any()


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(("type_", "path"), KINDS, ids=str)
def test_rows(type_: ScalarType, path: str, m: int, group_size: int, dtype: torch.dtype) -> None:
    check(random_weight(type_, 192, 512, group_size, dtype, DEVICE), m, dtype, path)


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize(("size_n", "size_k"), SHAPES)
@pytest.mark.parametrize("m", [1, 16, 17, 48, 129, 520])
@pytest.mark.parametrize(("type_", "path"), KINDS, ids=str)
def test_shapes(type_: ScalarType, path: str, m: int, size_n: int, size_k: int, dtype: torch.dtype) -> None:
    check(random_weight(type_, size_n, size_k, 128, dtype, DEVICE), m, dtype, path)


@pytest.mark.sanitizer
@pytest.mark.parametrize("m", [1, 16, 32, 64, 100])
@pytest.mark.parametrize(("type_", "path"), KINDS, ids=str)
def test_every_tile(type_: ScalarType, path: str, m: int) -> None:
    check(random_weight(type_, 320, 640, 32, torch.bfloat16, DEVICE), m, torch.bfloat16, path)


@pytest.mark.sanitizer
@pytest.mark.parametrize("m", [20, 50, 100])
@pytest.mark.parametrize("path", PATHS)
def test_many_blocks_share_a_tile(path: str, m: int) -> None:
    check(random_weight(scalar_types.uint4, 320, 8192, 128, torch.bfloat16, DEVICE), m, torch.bfloat16, path)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("group_size", [64, 128])
@pytest.mark.parametrize(
    ("m", "size_k"), [(1, 1024), (1, 2048), (16, 1024), (32, 1024), (64, 1024), (400, 1024)]
)
@pytest.mark.parametrize("path", PATHS)
def test_the_deeper_pipelines_and_the_largest_tile(
    path: str, m: int, size_k: int, group_size: int, dtype: torch.dtype
) -> None:
    check(random_weight(scalar_types.uint4, 40960, size_k, group_size, dtype, DEVICE), m, dtype, path)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("m", [40, 64])
def test_wide_tiles(m: int, dtype: torch.dtype) -> None:
    """Of 512 columns, but for the last, of 64: about the smallest matrix that takes them on an H200.

    Some of its columns are compared: under compute-sanitizer references of all run out of memory.
    """
    weight = random_weight(scalar_types.uint4, 33856, 6016, 128, dtype, DEVICE)
    a = randn(m, 6016, dtype=dtype)
    with force_path("generic"):
        result = product(weight, a)
    for begin, end in ((0, 1024), (16384, 17408), (32768, 33856)):
        assert_product(result[:, begin:end], a, weight.columns(begin, end).dense())


@pytest.mark.parametrize("exponent", [-56, 56])
@pytest.mark.parametrize(("size_n", "size_k"), [(192, 512), (40960, 1024)])
@pytest.mark.parametrize("m", [1, 16])
def test_large_and_small_rows(m: int, size_n: int, size_k: int, exponent: int) -> None:
    """Up to 16 rows are scaled on their way."""
    weight = random_weight(scalar_types.uint4, size_n, size_k, 128, torch.bfloat16, DEVICE)
    a = randn(m, size_k, dtype=torch.bfloat16) * 2.0**exponent
    assert_product(product(weight, a), a, weight.dense())


@pytest.mark.parametrize("m", [1, 16, 32, 200])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("writer", ["repack", "copy"])
def test_weights_written_just_before(writer: str, path: str, m: int) -> None:
    """The first weights are copied before the predecessor is awaited, and it may be what wrote them."""
    size_n, size_k = 10240, 2048
    weight = random_weight(scalar_types.uint4, size_n, size_k, 128, torch.bfloat16, DEVICE)
    a = randn(m, size_k, dtype=torch.bfloat16)
    words = [
        random_weight(scalar_types.uint4, size_n, size_k, 128, a.dtype, DEVICE, seed=i).packed for i in (1, 2)
    ]
    packed = torch.empty_like(words[0])
    results = [torch.empty(m, size_n, dtype=a.dtype, device=DEVICE) for _ in words]

    def write_and_multiply(i: int) -> None:
        if writer == "copy":
            weight.packed = packed.copy_(words[i])
        else:  # drops what the one before allocated, and takes its place
            weight.packed = packed
            weight.packed = sgl_kernel.awq_marlin_repack(
                words[i].view(size_k, size_n // 8), size_k, size_n, 4
            )
        product(weight, a, results[i])

    with force_path(path):
        expected = []
        for i in range(2):
            write_and_multiply(i)
            torch.cuda.synchronize()
            product(weight, a, results[i])
            expected.append(results[i].clone())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(20):
                write_and_multiply(i % 2)
        for _ in range(20):
            for result in results:
                result.zero_()
            graph.replay()
            torch.cuda.synchronize()
            for result, right in zip(results, expected, strict=True):
                assert_same_bits(result, right, label="gptq_marlin_gemm")


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("m", [1, 17, pytest.param(65, marks=pytest.mark.sanitizer), 129])
@pytest.mark.parametrize("type_", [scalar_types.uint4b8, scalar_types.uint8b128], ids=str)
def test_act_order(type_: ScalarType, m: int, group_size: int, dtype: torch.dtype) -> None:
    check(random_weight(type_, 320, 512, group_size, dtype, DEVICE, is_act_order=True), m, dtype)


def test_act_order_of_a_shard() -> None:
    """Some rows of a larger matrix: scales hold all groups, g_idx names those that occur."""
    weight = random_weight(scalar_types.uint4b8, 128, 256, 32, torch.float16, DEVICE, is_act_order=True)
    scales = torch.cat([weight.scales, weight.scales.flip(0)])
    weight.scales, weight.g_idx = scales, (weight.g_idx * 2 + 1).int()
    a = randn(9, 256, dtype=torch.float16)
    result = sgl_kernel.gptq_marlin_gemm(*weight.arguments(a), is_k_full=False)
    assert_product(result, a, weight.dense())


def test_a_permutation_out_of_range_does_not_fault() -> None:
    weight = random_weight(scalar_types.uint4b8, 128, 256, 32, torch.float16, DEVICE, is_act_order=True)
    weight.perm[0], weight.g_idx[-1] = 1 << 30, -5
    product(weight, randn(3, 256, dtype=torch.float16))
    torch.cuda.synchronize()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("m", [1, 20, 200])
@pytest.mark.parametrize(("pad", "offset"), [(0, 0), (8, 8), (1, 3)])
def test_strided_operands(m: int, pad: int, offset: int, path: str) -> None:
    """An unaligned a is copied first; nothing beyond the rows of c is written."""
    weight = random_weight(scalar_types.uint4, 192, 512, 128, torch.bfloat16, DEVICE)
    values = randn(m, 512, dtype=torch.bfloat16)
    a = embed_rows(values, pad=pad, offset=offset)
    c = embed_rows(torch.zeros(m, 192, dtype=torch.bfloat16, device=DEVICE), pad=6, offset=2, poisoned=True)
    with force_path(path):
        assert product(weight, a.view, c.view) is c.view
    assert_product(c.view, values, weight.dense())
    c.assert_guards_intact()


@pytest.mark.parametrize("path", PATHS)
def test_rows_far_apart(path: str) -> None:
    """Further than threads can step in 32 bits: a is copied first."""
    weight = random_weight(scalar_types.uint4, 192, 512, 128, torch.bfloat16, DEVICE)
    a = torch.empty(3, (1 << 24) + 8, dtype=torch.bfloat16, device=DEVICE)[:, :512]
    a.copy_(randn(3, 512, dtype=torch.bfloat16))
    with force_path(path):
        result = product(weight, a)
    assert_product(result, a, weight.dense())


@pytest.mark.parametrize("type_", [scalar_types.float8_e4m3fn, scalar_types.uint4b8], ids=str)
@pytest.mark.parametrize("m", [1, 130])
@pytest.mark.parametrize("size_k", [128, 2048])
def test_bias(type_: ScalarType, m: int, size_k: int) -> None:
    weight = random_weight(type_, 320, size_k, -1, torch.float16, DEVICE)
    a, permuted = randn(m, size_k, dtype=torch.float16), randn(320, dtype=torch.float16)
    result = sgl_kernel.gptq_marlin_gemm(*weight.arguments(a), b_bias=permuted)
    assert_product(result, a, weight.dense(), marlin.unpack_scales(permuted[None], is_single=True)[0])


@pytest.mark.parametrize("m", [1, 17, 64, 300])
@pytest.mark.parametrize(("size_n", "size_k"), [(320, 2048), (5120, 2048), (33856, 6016)])
@pytest.mark.parametrize("path", PATHS)
def test_repeats_are_equal_bit_by_bit(path: str, m: int, size_n: int, size_k: int) -> None:
    weight = random_weight(scalar_types.uint4, size_n, size_k, 128, torch.bfloat16, DEVICE)
    a = randn(m, size_k, dtype=torch.bfloat16)
    with force_path(path):
        first = product(weight, a)
        for _ in range(100):
            assert_same_bits(product(weight, a), first, "gptq_marlin_gemm")


@pytest.mark.parametrize("path", PATHS)
def test_weights_that_were_written_just_before(path: str) -> None:
    """What is fetched before the predecessor ends must not be what it overwrites."""
    weight = random_weight(scalar_types.uint4, 5120, 2048, 128, torch.bfloat16, DEVICE)
    other = random_weight(scalar_types.uint4, 5120, 2048, 128, torch.bfloat16, DEVICE, seed=1)
    a = randn(40, 2048, dtype=torch.bfloat16)
    with force_path(path):
        expected = product(other, a)
        for _ in range(20):
            saved = weight.packed.clone(), weight.scales.clone(), weight.zeros.clone()
            product(weight, a)
            for mine, theirs in (
                (weight.packed, other.packed),
                (weight.scales, other.scales),
                (weight.zeros, other.zeros),
            ):
                mine.copy_(theirs)
            assert_same_bits(product(weight, a), expected, "gptq_marlin_gemm")
            for mine, back in zip((weight.packed, weight.scales, weight.zeros), saved, strict=True):
                mine.copy_(back)


def test_a_path_that_these_weights_lack() -> None:
    weight = random_weight(scalar_types.uint8b128, 64, 128, -1, torch.bfloat16, DEVICE)
    with (
        force_path("sm90"),
        pytest.raises(RuntimeError, match="gptq_marlin_gemm: path: expected one that this GPU has"),
    ):
        product(weight, randn(1, 128, dtype=torch.bfloat16))


def test_a_row_does_not_depend_on_the_others_of_its_tile() -> None:
    """NaN in one row stays there."""
    weight = random_weight(scalar_types.uint4, 320, 1024, 128, torch.bfloat16, DEVICE)
    a = randn(13, 1024, dtype=torch.bfloat16)
    clean = product(weight, a)
    a[5] = torch.nan
    result = product(weight, a)
    assert result[5].isnan().all()
    keep = torch.arange(13, device=DEVICE) != 5
    assert_same_bits(result[keep], clean[keep], "gptq_marlin_gemm")


def test_model_shapes() -> None:
    """Those of Qwen3-32B and 14B that are cut into pieces most unevenly."""
    auto = (
        *((10240, 5120, 5), (5120, 8192, 16), (5120, 17408, 16), (5120, 25600, 16)),
        *((5120, 17408, 30), (5120, 8192, 100), (51200, 5120, 250), (5120, 25600, 1000)),
    )
    for path, shapes in (("auto", auto), ("generic", ((51200, 5120, 60),))):
        for size_n, size_k, m in shapes:
            weight = random_weight(scalar_types.uint4, size_n, size_k, 128, torch.bfloat16, DEVICE)
            check(weight, m, torch.bfloat16, path)
