// gptq_gemm, gptq_shuffle: checks, choice and launches.
#include "kernels/gptq.h"

#include <optional>

#include "ops/heuristics/gptq.h"
#include "ops/packed_checks.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_gptq[];

namespace sglk::gptq {
namespace {

FatBinary& fat_binary() {
  static FatBinary binary("gptq", sglk_fatbin_gptq, kKernelCount, kernel_name);
  return binary;
}

void launch(const char* op, int kernel, int32_t device, int64_t blocks, const GptqParams& params) {
  LaunchConfig config;
  config.grid.x = checked_grid(op, blocks);
  config.block = kMaxThreads;
  config.enable_pdl = true;  // the kernels wait for their predecessor themselves
  fat_binary().launch(kernel, device, config, params);
}

int checked_bits(const char* op, int64_t bit) {
  const int index = bits_index(bit);
  SGLK_CHECK(index >= 0, "%s: bit: expected 2, 3, 4 or 8, got %ld", op, bit);
  return index;
}

// The rows that `words` rows of packed weights hold.
int64_t checked_rows(const char* op, const char* name, int64_t words, int64_t bit) {
  SGLK_CHECK(words * 32 % bit == 0, "%s: %s.size(0): expected a multiple of 3, got %ld", op, name, words);
  return words * 32 / bit;
}

// Null for an empty tensor.
const int* checked_indices(const Argument& a, int64_t k, const Tensor& weight, const char* weight_name) {
  if (a.tensor.numel() == 0) return nullptr;
  check_dim(a, 1, "[in], or empty");
  check_size(a, 0, k, "input features");
  check_dense(a, DType::kInt32, "indices", weight.device(), weight_name);
  return a.tensor.data<const int>();
}

Tensor gptq_gemm(const Tensor& a, const Tensor& b_q_weight, const Tensor& b_gptq_qzeros,
                 const Tensor& b_gptq_scales, const Tensor& b_g_idx, bool use_shuffle, int64_t bit) {
  constexpr const char* op = "gptq_gemm";
  const int bits = checked_bits(op, bit);
  const Argument a_arg{op, "a", a}, weight_arg{op, "b_q_weight", b_q_weight},
      zeros_arg{op, "b_gptq_qzeros", b_gptq_qzeros}, scales_arg{op, "b_gptq_scales", b_gptq_scales};
  check_dim(weight_arg, 2, "[in * bit / 32, out]");
  check_dense(weight_arg, DType::kInt32, "packed weights", b_q_weight.device(), "");
  const int64_t n = b_q_weight.size(1), k = checked_rows(op, "b_q_weight", b_q_weight.size(0), bit);
  check_multiple(op, "b_q_weight.size(1)", n, bit == 3 ? 32 : 32 / bit);  // whole words of zero points
  check_int(op, "b_q_weight.size(1)", n);
  check_int(op, "a.size(1)", k);
  check_dim(a_arg, 2, "[tokens, in]");
  check_size(a_arg, 1, k, "32 / bit * b_q_weight.size(0)");
  check_int(op, "a.size(0)", a.size(0));
  check_dtype(a_arg, DType::kFloat16, "activations");
  check_device(a_arg, b_q_weight.device(), "device of b_q_weight");
  check_last_stride(a_arg);
  check_dim(scales_arg, 2, "[groups, out]");
  check_size(scales_arg, 1, n, "b_q_weight.size(1)");
  check_dense(scales_arg, DType::kFloat16, "dtype of a", b_q_weight.device(), "device of b_q_weight");
  const int64_t groups = b_gptq_scales.size(0);
  check_dim(zeros_arg, 2, "[groups, out * bit / 32]");
  check_size(zeros_arg, 0, groups, "b_gptq_scales.size(0)");
  check_size(zeros_arg, 1, n * bit / 32, "b_q_weight.size(1) * bit / 32");
  check_dense(zeros_arg, DType::kInt32, "packed zero points", b_q_weight.device(), "device of b_q_weight");
  const int* const indices = checked_indices({op, "b_g_idx", b_g_idx}, k, b_q_weight, "device of b_q_weight");
  const int* const g_idx = use_shuffle ? nullptr : indices;
  SGLK_CHECK(groups > 0 && groups <= INT_MAX && (g_idx != nullptr || k % groups == 0),
             "%s: b_gptq_scales.size(0): expected a divisor of %ld (input features), got %ld", op, k, groups);
  const int64_t m = a.size(0);

  Tensor out = Tensor::empty({m, n}, DType::kFloat16, a.device());
  if (out.numel() == 0) return out;
  SGLK_CHECK(k > 0, "%s: a.size(1): expected at least 1, got 0", op);
  const DeviceGuard guard(a.device());
  const int32_t device = a.device().index;
  const Choice choice = choose(m, n, k, device_properties(device).multiprocessors);
  std::optional<Tensor> partial;
  if (choice.splits > 1) partial = Tensor::empty({choice.splits, m, n}, DType::kFloat32, a.device());

  GptqParams params{};
  params.output = out.data();
  params.partial = partial ? partial->data<float>() : nullptr;
  params.a = a.data();
  params.qweight = b_q_weight.data<const unsigned>();
  params.qzeros = b_gptq_qzeros.data<const unsigned>();
  params.scales = b_gptq_scales.data();
  params.perm = use_shuffle ? indices : nullptr;
  params.g_idx = g_idx;
  params.a_stride = m > 1 ? a.stride(0) : k;
  params.m = static_cast<int>(m);
  params.n = static_cast<int>(n);
  params.k = static_cast<int>(k);
  params.groups = static_cast<int>(groups);
  params.group_size = static_cast<int>(std::max<int64_t>(1, k / groups));
  params.splits = choice.splits;
  params.units_per_split = choice.units_per_split;
  params.row_blocks = choice.row_blocks;
  params.column_blocks = choice.column_blocks;
  params.is_a_aligned = is_aligned(16, 2, a.data(), {params.a_stride, k}) ? 1 : 0;
  const bool is_indexed = g_idx != nullptr || (groups > 1 && params.group_size % 32 != 0);
  launch(op, gemm_index(bits, is_indexed, choice.shape), device, choice.blocks, params);
  if (partial) launch(op, kReduce, device, ceil_divide(m * n, 4 * kMaxThreads), params);
  return out;
}

void gptq_shuffle(const Tensor& q_weight, const Tensor& q_perm, int64_t bit) {
  constexpr const char* op = "gptq_shuffle";
  const int bits = checked_bits(op, bit);
  const Argument weight_arg{op, "q_weight", q_weight};
  check_dim(weight_arg, 2, "[in * bit / 32, out]");
  check_dense(weight_arg, DType::kInt32, "packed weights", q_weight.device(), "");
  const int64_t words = q_weight.size(0), n = q_weight.size(1), k = checked_rows(op, "q_weight", words, bit);
  check_int(op, "q_weight.size(0) * 32 / bit", k);
  check_int(op, "q_weight.size(1)", n);
  const int* const perm = checked_indices({op, "q_perm", q_perm}, k, q_weight, "device of q_weight");
  if (perm == nullptr || q_weight.numel() == 0) return;  // the order of the values is that of the checkpoint

  const DeviceGuard guard(q_weight.device());
  const int32_t device = q_weight.device().index;
  const Tensor shuffled = Tensor::empty({words, n}, DType::kInt32, q_weight.device());
  GptqParams params{};
  params.output = shuffled.data();
  params.qweight = q_weight.data<const unsigned>();
  params.perm = perm;
  params.n = static_cast<int>(n);
  params.k = static_cast<int>(k);
  params.row_blocks = 1;
  params.column_blocks = static_cast<int>(ceil_divide(n, kMaxThreads));
  launch(op, kShuffle + bits, device, params.column_blocks * ceil_divide(k, 32), params);
  params.output = q_weight.data();
  params.qweight = shuffled.data<const unsigned>();
  params.k = static_cast<int>(words);
  launch(op, kCopy, device, ceil_divide(words * n, kMaxThreads), params);
}

}  // namespace

SGLK_OP(
    "gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, Tensor b_g_idx, bool "
    "use_shuffle, int bit) -> Tensor",
    gptq_gemm);
SGLK_OP("gptq_shuffle(Tensor(a!) q_weight, Tensor q_perm, int bit) -> ()", gptq_shuffle);

}  // namespace sglk::gptq
