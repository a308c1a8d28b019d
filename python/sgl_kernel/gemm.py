"""Quantized matrix products and the quantization of operands. What is provided has modules of its own."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernel import _paths
from sgl_kernel._checks import fail
from sgl_kernel._library import ops
from sgl_kernel._marlin_gemm import OP
from sgl_kernel._missing import not_provided
from sgl_kernel.awq import awq_dequantize
from sgl_kernel.gptq import gptq_gemm, gptq_shuffle
from sgl_kernel.scalar_type import ScalarType

__all__ = [
    "awq_dequantize",
    "bmm_fp8",
    "cutlass_scaled_fp4_mm",
    "dsv3_fused_a_gemm",
    "dsv3_router_gemm",
    "fp8_blockwise_scaled_mm",
    "fp8_scaled_mm",
    "gptq_gemm",
    "gptq_marlin_gemm",
    "gptq_shuffle",
    "int8_scaled_mm",
    "qserve_w4a8_per_chn_gemm",
    "qserve_w4a8_per_group_gemm",
    "scaled_fp4_experts_quant",
    "scaled_fp4_grouped_quant",
    "scaled_fp4_quant",
    "sgl_per_tensor_quant_fp8",
    "sgl_per_token_group_quant_fp8",
    "sgl_per_token_group_quant_int8",
    "sgl_per_token_quant_fp8",
    "shuffle_rows",
    "silu_and_mul_scaled_fp4_grouped_quant",
]

_gptq_marlin_gemm = ops.gptq_marlin_gemm.default


@not_provided
def int8_scaled_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    scales_a: Tensor,
    scales_b: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    """int8 times int8, scaled per row and per column."""


@not_provided
def fp8_blockwise_scaled_mm(
    mat_a: Tensor, mat_b: Tensor, scales_a: Tensor, scales_b: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """float8 times float8, scaled per 1 x 128 and per 128 x 128 block."""


@not_provided
def fp8_scaled_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    scales_a: Tensor,
    scales_b: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    """float8 times float8, scaled per row and per column."""


@not_provided
def bmm_fp8(
    A: Tensor,
    B: Tensor,
    A_scale: Tensor,
    B_scale: Tensor,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """A batch of float8 products with one scale per operand."""


@not_provided
def dsv3_fused_a_gemm(mat_a: Tensor, mat_b: Tensor, output: Tensor | None = None) -> Tensor:
    """DeepSeek-V3's joint down-projection for at most 16 tokens, in bfloat16."""


@not_provided
def sgl_per_token_group_quant_fp8(
    input: Tensor,
    output_q: Tensor,
    output_s: Tensor,
    group_size: int,
    eps: float,
    fp8_min: float,
    fp8_max: float,
    scale_ue8m0: bool,
) -> None:
    """Quantizes to float8 with one scale per group of a row."""


@not_provided
def sgl_per_token_group_quant_int8(
    input: Tensor,
    output_q: Tensor,
    output_s: Tensor,
    group_size: int,
    eps: float,
    int8_min: float,
    int8_max: float,
) -> None:
    """Quantizes to int8 with one scale per group of a row."""


@not_provided
def sgl_per_tensor_quant_fp8(input: Tensor, output_q: Tensor, output_s: Tensor, is_static: bool) -> None:
    """Quantizes to float8 with one scale, given or computed."""


@not_provided
def sgl_per_token_quant_fp8(input: Tensor, output_q: Tensor, output_s: Tensor) -> None:
    """Quantizes to float8 with one scale per row."""


@not_provided
def cutlass_scaled_fp4_mm(
    a: Tensor,
    b: Tensor,
    block_scale_a: Tensor,
    block_scale_b: Tensor,
    alpha: Tensor,
    out_dtype: torch.dtype,
) -> Tensor:
    """float4 times float4 with one scale per 16 elements."""


@not_provided
def scaled_fp4_quant(input: Tensor, input_global_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes to float4 with one float8 scale per 16 elements."""


@not_provided
def qserve_w4a8_per_chn_gemm(
    in_feats: Tensor,
    kernel: Tensor,
    wscales: Tensor,
    ascales: Tensor,
    w_szs: Tensor,
    a_ssums: Tensor,
    out_feats: Tensor | None = None,
) -> Tensor:
    """int8 times uint4 with one weight scale and zero per channel."""


@not_provided
def qserve_w4a8_per_group_gemm(
    in_feats: Tensor,
    kernel: Tensor,
    zeros: Tensor,
    scales_i8: Tensor,
    wscales: Tensor,
    ascales: Tensor,
    out_feats: Tensor | None = None,
) -> Tensor:
    """int8 times uint4 with int8 scales and zeros per group of 128, and one scale per channel."""


@not_provided
def dsv3_router_gemm(
    hidden_states: Tensor, router_weights: Tensor, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """DeepSeek-V3's router logits for at most 16 tokens."""


@not_provided
def shuffle_rows(input_tensor: Tensor, dst2src_map: Tensor, output_tensor_shape: tuple[int, ...]) -> Tensor:
    """A new tensor whose row i is the row ``dst2src_map[i]`` of the input."""


@not_provided
def scaled_fp4_grouped_quant(input_tensor: Tensor, input_global_scale: Tensor) -> tuple[Tensor, Tensor]:
    """``scaled_fp4_quant`` for each matrix of a batch."""


@not_provided
def silu_and_mul_scaled_fp4_grouped_quant(
    input_tensor: Tensor, input_global_scale: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """SwiGLU, then ``scaled_fp4_grouped_quant``, of the first ``mask[i]`` rows of matrix i."""


@not_provided
def scaled_fp4_experts_quant(
    input_tensor: Tensor,
    input_global_scale: Tensor,
    expert_offsets: Tensor,
    blockscale_offsets: Tensor,
    topk: int,
    expert_map: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``scaled_fp4_quant`` of rows sorted by expert, each with its expert's scale."""


def gptq_marlin_gemm(
    a: Tensor,
    c: Tensor | None,
    b_q_weight: Tensor,
    b_scales: Tensor,
    global_scale: Tensor | None,
    b_zeros: Tensor | None,
    g_idx: Tensor | None,
    perm: Tensor | None,
    workspace: Tensor,
    b_q_type: ScalarType,
    size_m: int,
    size_n: int,
    size_k: int,
    is_k_full: bool = True,
    use_atomic_add: bool = False,
    use_fp32_reduce: bool = False,
    is_zp_float: bool = False,
    b_bias: Tensor | None = None,
) -> Tensor:
    """``a @ W`` for weights in Marlin's tiles, with ``W[k, n] = (q - z) * scale`` of the group of row k.

    ``a`` is [size_m, size_k], float16 or bfloat16, of any row stride; size_n is a multiple of 64, size_k
    of 128. ``b_q_weight`` is int32 [size_k / 16, size_n * bits / 2], ``b_scales`` [groups, size_n] in the
    dtype of ``a`` and, for uint4, ``b_zeros`` int32 [groups, size_n / 8], all in Marlin's orders; one group,
    or groups of 32, 64 or 128 rows. uint4b8 and uint8b128 have z = 8 and 128; float8_e4m3fn has none, and
    expects scales multiplied by 2^8 (float16) or 2^120 (bfloat16). With act-order, ``perm`` int32 [size_k]
    names the column of ``a`` for each row of weights, ``g_idx`` its group. A tensor of no elements counts as
    None.

    Writes to ``c`` if given, else to a new tensor, and returns it. Sums are float32, in an order that depends
    on the shapes and the GPU alone: ``use_atomic_add``, ``use_fp32_reduce`` and ``is_k_full`` make no
    difference. ``workspace``: int32, as many elements as the GPU has multiprocessors, all 0, and 0 again
    afterwards; calls that may overlap need one each (the CPU does not use it). ``b_bias`` [size_n], in the
    order of a single group of scales, is added before the result is rounded. A violation raises RuntimeError.

    Up to 16 rows of bfloat16 are multiplied by 2^68 on their way to the tensor cores: elements of 2^60 and
    more may become infinite there, and an infinite element may make NaN of its row.

    From sm_90 on the first words of ``b_q_weight`` are read while the kernel before may still run, if that
    one lets its successor start early (programmatic dependent launch): a kernel that does may not write them.
    """
    if global_scale is not None and global_scale.numel() > 0:
        fail(OP, "global_scale", "None (it belongs to float4 weights)", "a tensor")
    if is_zp_float:
        fail(OP, "is_zp_float", "False (zero points are integers)", True)
    if c is None:
        c = torch.empty((size_m, size_n), dtype=a.dtype, device=a.device)
    _gptq_marlin_gemm(
        *(a, c, b_q_weight, b_scales, b_zeros, g_idx, perm, workspace, b_bias),
        *(b_q_type.id, size_m, size_n, size_k, _paths.current()),
    )
    return c
