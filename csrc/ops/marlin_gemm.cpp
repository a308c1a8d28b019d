// gptq_marlin_gemm: checks, choice and launch.
#include "kernels/marlin_gemm.h"

#include <bit>
#include <climits>
#include <cstdio>
#include <optional>

#include "ops/checks.h"
#include "ops/heuristics/marlin_gemm.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_marlin_gemm[];

namespace sglk::marlin_gemm {
namespace {

constexpr const char* kOp = "gptq_marlin_gemm";

// ids of sgl_kernel.scalar_type.
constexpr int64_t kUint4Id = 1125899906843648, kUint4B8Id = 1125899907892224, kUint8B128Id = 1125899923621888,
                  kFloat8E4M3Id = 2814749767172868;

FatBinary& fat_binary() {
  static FatBinary binary("marlin_gemm", sglk_fatbin_marlin_gemm, kKernelCount, kernel_name);
  return binary;
}

bool is_given(const std::optional<Tensor>& t) { return t && t->numel() > 0; }

void check_matrix(const Argument& x, int64_t rows, const char* rows_reason, int64_t columns,
                  const char* columns_reason, const Tensor& a) {
  check_dim(x, 2, "(a matrix)");
  check_size(x, 0, rows, rows_reason);
  check_size(x, 1, columns, columns_reason);
  check_device(x, a.device(), "device of a");
}

void check_vector(const Argument& x, int64_t size, const char* reason, DType dtype, const Tensor& a) {
  check_dim(x, 1, "(a vector)");
  check_size(x, 0, size, reason);
  check_dtype(x, dtype, "fixed by the op");
  check_device(x, a.device(), "device of a");
  check_last_stride(x);
}

void check_aligned(const Argument& x, int bytes) {
  SGLK_CHECK(is_aligned(bytes, 1, x.tensor.data(), {}), "%s: %s: expected data aligned to %d bytes, got %p",
             x.op, x.name, bytes, x.tensor.data());
}

WeightType weight_type(int64_t id) {
  SGLK_CHECK(id == kUint4Id || id == kUint4B8Id || id == kUint8B128Id || id == kFloat8E4M3Id,
             "%s: b_q_type: expected uint4, uint4b8, uint8b128 or float8_e4m3fn, got the type of id %ld", kOp,
             id);
  return id == kUint8B128Id ? kUint8 : id == kFloat8E4M3Id ? kFloat8 : kUint4;
}

// Rows of a group.
uint64_t check_groups(const Tensor& scales, int64_t k, bool is_act_order) {
  const int64_t groups = scales.size(0);
  SGLK_CHECK(groups >= 1, "%s: b_scales.size(0): expected at least one group, got 0", kOp);
  if (groups == 1 || is_act_order) return k;
  const int64_t size = k / groups;
  SGLK_CHECK(
      k % groups == 0 && (size == 32 || size == 64 || size == 128),
      "%s: b_scales.size(0): expected 1 group, or groups of 32, 64 or 128 of size_k's %ld rows, got %ld", kOp,
      k, groups);
  return size;
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

void check_sizes(int64_t n, int64_t k) {
  SGLK_CHECK(n >= 0 && n % 64 == 0, "%s: size_n: expected a multiple of 64, got %ld", kOp, n);
  SGLK_CHECK(k > 0 && k % 128 == 0, "%s: size_k: expected a positive multiple of 128, got %ld", kOp, k);
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
  SGLK_CHECK(m <= INT_MAX && n <= INT_MAX / 32 && k <= 256 * 65535 && total_units(shape, m, n, k) <= INT_MAX,
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
  const WeightType weight = weight_type(b_q_type_id);
  check_sizes(size_n, size_k);
  const Argument a_arg{kOp, "a", a}, c_arg{kOp, "c", c};
  check_dim(a_arg, 2, "[size_m, size_k]");
  check_size(a_arg, 0, size_m, "size_m");
  check_size(a_arg, 1, size_k, "size_k");
  check_dtype_in(a_arg, {DType::kFloat16, DType::kBFloat16});
  check_last_stride(a_arg);
  check_matrix(c_arg, size_m, "size_m", size_n, "size_n", a);
  check_dtype(c_arg, a.dtype(), "dtype of a");
  check_last_stride(c_arg);
  SGLK_CHECK(is_aligned(4, 2, c.data(), {size_m > 1 ? c.stride(0) : 0}),
             "%s: c: expected rows aligned to 4 bytes", kOp);
  const Argument weight_arg{kOp, "b_q_weight", b_q_weight}, scales_arg{kOp, "b_scales", b_scales};
  check_matrix(weight_arg, size_k / 16, "size_k / 16", size_n * bits(weight) / 2, "size_n * bits / 2", a);
  check_dtype(weight_arg, DType::kInt32, "Marlin tiles");
  check_contiguous(weight_arg);
  check_aligned(weight_arg, 16);
  check_dim(scales_arg, 2, "[groups, size_n]");
  check_matrix(scales_arg, b_scales.size(0), "groups", size_n, "size_n", a);
  check_dtype(scales_arg, a.dtype(), "dtype of a");
  check_contiguous(scales_arg);
  check_aligned(scales_arg, 16);

  const bool has_order = is_given(g_idx), has_zeros = is_given(b_zeros);
  SGLK_CHECK(has_order == is_given(perm), "%s: g_idx, perm: expected both or none, got one of them", kOp);
  SGLK_CHECK(!has_order || (!has_zeros && weight != kFloat8),
             "%s: g_idx: expected none with b_zeros or float8 weights, got one", kOp);
  if (has_order) {
    check_vector({kOp, "g_idx", *g_idx}, size_k, "size_k", DType::kInt32, a);
    check_vector({kOp, "perm", *perm}, size_k, "size_k", DType::kInt32, a);
  }
  SGLK_CHECK(has_zeros == (b_q_type_id == kUint4Id), "%s: b_zeros: expected %s, got %s", kOp,
             has_zeros ? "none with this b_q_type" : "zero points with uint4", has_zeros ? "some" : "none");
  if (has_zeros) {
    const Argument zeros{kOp, "b_zeros", *b_zeros};
    check_matrix(zeros, b_scales.size(0), "b_scales.size(0)", size_n / 8, "size_n / 8", a);
    check_dtype(zeros, DType::kInt32, "eight zero points a word");
    check_contiguous(zeros);
    check_aligned(zeros, 16);
  }
  const bool is_act_order = has_order && b_scales.size(0) > 1;
  const uint64_t group_size = check_groups(b_scales, size_k, is_act_order);
  const int64_t group = b_scales.size(0) > 1 && !is_act_order ? group_size : 0;
  const bool has_bias = is_given(b_bias);
  if (has_bias) check_vector({kOp, "b_bias", *b_bias}, size_n, "size_n", a.dtype(), a);
  const Argument workspace_arg{kOp, "workspace", workspace};
  check_dtype(workspace_arg, DType::kInt32, "fixed by the op");
  check_contiguous(workspace_arg);
  check_device(workspace_arg, a.device(), "device of a");
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
  params.zeros = has_zeros ? b_zeros->data() : nullptr;
  params.g_idx = is_act_order ? g_idx->data<const int>() : nullptr;
  params.bias = has_bias ? b_bias->data() : nullptr;
  params.out = c.data();
  params.out_stride = c.stride(0);
  params.groups = static_cast<int>(b_scales.size(0));
  params.group_shift = b_scales.size(0) == 1 || is_act_order ? 30 : std::countr_zero(group_size / kMinGroup);
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
