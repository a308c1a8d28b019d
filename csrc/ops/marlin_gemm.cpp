// gptq_marlin_gemm: choice and launch.
#include "kernels/marlin_gemm.h"

#include <bit>
#include <climits>
#include <cstdio>

#include "ops/marlin_gemm_checks.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_marlin_gemm[];

namespace sglk::marlin_gemm {
namespace {

FatBinary& fat_binary() {
  static FatBinary binary("marlin_gemm", sglk_fatbin_marlin_gemm, kKernelCount, kernel_name);
  return binary;
}

struct Launch {
  int32_t device;
  ElementType type;

  template <class Params>
  void operator()(int kernel, const Dim3& grid, int threads, int shared_bytes, const Params& params) const {
    LaunchConfig config;
    config.grid = grid;
    config.block = threads;
    config.shared_bytes = shared_bytes;
    config.enable_pdl = true;
    fat_binary().launch(kernel, device, config, params);
  }
};

TensorMap map_of(const BoxedMatrix& matrix, ElementType type) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));
  TensorMap map;
  const auto half = type == kBf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto element = matrix.element_bytes == 8   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT64
                       : matrix.element_bytes == 4 ? CU_TENSOR_MAP_DATA_TYPE_INT32
                                                   : half;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(matrix.columns), static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t stride[] = {static_cast<cuuint64_t>(matrix.row_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(matrix.box_columns),
                            static_cast<cuuint32_t>(matrix.box_rows)};
  const cuuint32_t steps[] = {1, 1};
  // Promotion to 256 bytes made 16 tokens take 1 to 4 % longer (H200, 2026-11-29).
  check_cuda(driver().tensor_map_encode_tiled(
                 reinterpret_cast<CUtensorMap*>(&map), element, 2, const_cast<void*>(matrix.data), sizes,
                 stride, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                 matrix.is_swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                 CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
             "cuTensorMapEncodeTiled");
  return map;
}

Sm90Params sm90_params(const Params& p, ElementType type, const Sm90Tile& tile) {
  const Sm90Matrices matrices = sm90_matrices(p, tile);
  return {map_of(matrices.tokens, type), map_of(matrices.weights, type), map_of(matrices.scales, type),
          p.zeros != nullptr ? map_of(matrices.zeros, type) : TensorMap{}, p};
}

struct Selection {
  bool is_sm90;
  Choice choice;
};

// m, n > 0; n, k of which check_sizes approves.
Selection select(int64_t m, int64_t n, int64_t k, WeightType weight, bool is_act_order, int64_t group,
                 int64_t path, const DeviceProperties& device) {
  const Shape& shape = kShapes[choose_shape(m, n, k, weight, is_act_order, group, device.multiprocessors,
                                            device.shared_memory_per_block)];
  SGLK_CHECK(m <= INT_MAX && n <= kMaxColumns && k <= 256 * 65535 && total_units(shape, m, n, k) <= INT_MAX,
             "%s: size_m, size_n, size_k: expected less than 2^31 units of tiles, got %ld, %ld, %ld", kOp, m,
             n, k);
  const bool has_sm90 = SGLK_HAS_SM90A && has_sm90_path(device.compute_capability, weight, is_act_order);
  SGLK_CHECK(path >= kAuto && path < kPaths && (path != kSm90 || has_sm90),
             "%s: path: expected one that this GPU has for these weights, got %ld", kOp, path);
  const bool is_sm90 = path == kSm90 || (path == kAuto && has_sm90 && prefers_sm90_path(m, group));
  return {is_sm90, is_sm90 ? choose_sm90(m, n, k, group, device.multiprocessors)
                           : choose(m, n, k, weight, is_act_order, group, device.multiprocessors,
                                    device.shared_memory_per_block)};
}

int kernel_of(const Selection& selection, ElementType type) {
  const int shape = selection.choice.shape;
  return selection.is_sm90 ? sm90_kernel_index(type, shape) : kernel_index(type, shape);
}

void gptq_marlin_gemm(const Tensor& a, const Tensor& c, const Tensor& b_q_weight, const Tensor& b_scales,
                      const std::optional<Tensor>& b_zeros, const std::optional<Tensor>& g_idx,
                      const std::optional<Tensor>& perm, const Tensor& workspace,
                      const std::optional<Tensor>& b_bias, int64_t b_q_type_id, int64_t size_m,
                      int64_t size_n, int64_t size_k, int64_t path) {
  const auto [weight, has_order, is_act_order, group] =
      checked({a, c, b_q_weight, b_scales, b_zeros, g_idx, perm, workspace, b_bias, b_q_type_id, size_m,
               size_n, size_k});
  if (size_m == 0 || size_n == 0) return;

  const DeviceGuard guard(a.device());
  const DeviceProperties& device = device_properties(a.device().index);
  const Selection selection = select(size_m, size_n, size_k, weight, is_act_order, group, path, device);
  const auto& [is_sm90, choice] = selection;
  const Launch launch{a.device().index, a.dtype() == DType::kBFloat16 ? kBf16 : kF16};
  Params params{};
  params.a = a.data();
  params.a_stride = a.stride(0);
  params.m = static_cast<int>(size_m);
  params.n = static_cast<int>(size_n);
  params.k = static_cast<int>(size_k);

  std::optional<Tensor> gathered, partial;
  const int64_t stride = size_m > 1 ? a.stride(0) : 0;
  if (has_order || !is_aligned(16, 2, a.data(), {stride}) || stride > kMaxStride) {
    gathered = Tensor::empty({size_m, size_k}, a.dtype(), a.device());
    params.perm = has_order ? perm->data<const int>() : nullptr;
    params.out = gathered->data();
    launch(kernel_index(launch.type, kGather),
           {static_cast<uint32_t>(size_m),
            static_cast<uint32_t>((size_k + kGatherThreads - 1) / kGatherThreads), 1},
           kGatherThreads, 0, params);
    params.a = gathered->data();
    params.a_stride = size_k;
  }
  if (choice.partition.is_split()) {
    SGLK_CHECK(workspace.numel() >= choice.partition.blocks,
               "%s: workspace: expected at least %d elements (multiprocessors), got %s", kOp,
               choice.partition.blocks, workspace.shape().c_str());
    partial =
        Tensor::empty({choice.partition.blocks, choice.tokens * choice.columns}, DType::kFloat32, a.device());
    params.partial = partial->data<float>();
    params.arrivals = workspace.data<int>();
  }
  params.weight = b_q_weight.data();
  params.scales = b_scales.data();
  params.zeros = is_given(b_zeros) ? b_zeros->data() : nullptr;
  params.g_idx = is_act_order ? g_idx->data<const int>() : nullptr;
  params.bias = is_given(b_bias) ? b_bias->data() : nullptr;
  params.out = c.data();
  params.out_stride = c.stride(0);
  params.groups = static_cast<int>(b_scales.size(0));
  params.group_shift = group == 0 ? 30 : std::countr_zero(static_cast<uint64_t>(group / kMinGroup));
  params.tiles = choice.tiles;
  params.partition = choice.partition;
  const Dim3 grid{static_cast<uint32_t>(choice.partition.blocks), 1, 1};
  const int kernel = kernel_of(selection, launch.type);
  if (is_sm90) {
    launch(kernel, grid, choice.threads, choice.shared_bytes,
           sm90_params(params, launch.type, kSm90Shapes[choice.shape].tile));
  } else {
    launch(kernel, grid, choice.threads, choice.shared_bytes, params);
  }
}

}  // namespace

// What is launched for bf16 tokens and 4-bit weights; read by sgl_kernel._plan (ctypes).
struct Plan {
  char kernel[64];
  char error[192];  // the op's, in place of all else; empty where there is none
  int tile_tokens, tile_columns;
  int tiles, blocks;
  int shared_bytes;
  int is_split;
};

void make_plan(Plan& plan, int64_t m, int64_t n, int64_t k, const DeviceProperties& device) {
  SGLK_CHECK(m > 0 && n > 0, "%s: size_m, size_n: expected at least 1, got %ld, %ld", kOp, m, n);
  check_sizes(n, k);
  const Selection selection = select(m, n, k, kUint4, false, 128, kAuto, device);
  const Choice& choice = selection.choice;
  std::snprintf(plan.kernel, sizeof plan.kernel, "%s", kernel_name(kernel_of(selection, kBf16)).c_str());
  plan.tile_tokens = choice.tokens;
  plan.tile_columns = choice.columns;
  plan.tiles = choice.tiles.tiles();
  plan.blocks = choice.partition.blocks;
  plan.shared_bytes = choice.shared_bytes;
  plan.is_split = choice.partition.is_split();
}

}  // namespace sglk::marlin_gemm

extern "C" __attribute__((visibility("default"))) void sglk_marlin_gemm_plan(int64_t m, int64_t n, int64_t k,
                                                                             int compute_capability,
                                                                             int multiprocessors,
                                                                             int shared_memory,
                                                                             sglk::marlin_gemm::Plan* plan) {
  *plan = {};
  try {
    make_plan(*plan, m, n, k, {compute_capability, multiprocessors, shared_memory});
  } catch (const sglk::Error& error) {
    std::snprintf(plan->error, sizeof plan->error, "%s", error.what());
  }
}

namespace sglk::marlin_gemm {

SGLK_OP(
    "gptq_marlin_gemm(Tensor a, Tensor(a!) c, Tensor b_q_weight, Tensor b_scales, Tensor? b_zeros, "
    "Tensor? g_idx, Tensor? perm, Tensor workspace, Tensor? b_bias, int b_q_type_id, int size_m, int size_n, "
    "int size_k, int path) -> ()",
    gptq_marlin_gemm);

}  // namespace sglk::marlin_gemm
