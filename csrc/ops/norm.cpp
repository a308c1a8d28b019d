// rmsnorm, gemma_rmsnorm, fused_add_rmsnorm, gemma_fused_add_rmsnorm: checks, choice and launch.
#include "kernels/norm.h"

#include <climits>

#include "ops/checks.h"
#include "ops/heuristics/norm.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_norm[];

namespace sglk::norm {
namespace {

FatBinary& fat_binary() {
  static FatBinary binary("norm", sglk_fatbin_norm, kKernelCount, kernel_name);
  return binary;
}

// A row's stride, also of a tensor whose only row has none worth reading.
int64_t row_stride(const Tensor& t) { return t.size(0) > 1 ? t.stride(0) : t.size(1); }

// `other` has the rows of `input`: [tokens, hidden], same dtype and device, contiguous rows.
void check_rows(const char* op, const char* name, const Tensor& other, const Tensor& input) {
  const Argument a{op, name, other};
  check_dim(a, 2, "[tokens, hidden]");
  check_size(a, 0, input.size(0), "input.size(0)");
  check_size(a, 1, input.size(1), "input.size(1)");
  check_dtype(a, input.dtype(), "dtype of input");
  check_device(a, input.device(), "device of input");
  check_last_stride(a);
}

// residual: null for the plain ops.
void normalize(const char* op, const Tensor& output, const Tensor& input, const Tensor* residual,
               const Tensor& weight, double eps, double weight_bias, bool enable_pdl) {
  check_dim({op, "input", input}, 2, "[tokens, hidden]");
  check_dtype_in({op, "input", input}, {DType::kFloat16, DType::kBFloat16});
  check_last_stride({op, "input", input});
  check_rows(op, "output", output, input);
  if (residual != nullptr) check_rows(op, "residual", *residual, input);
  check_dim({op, "weight", weight}, 1, "[hidden]");
  check_size({op, "weight", weight}, 0, input.size(1), "input.size(1)");
  check_dtype({op, "weight", weight}, input.dtype(), "dtype of input");
  check_device({op, "weight", weight}, input.device(), "device of input");
  check_last_stride({op, "weight", weight});
  const int64_t tokens = input.size(0), hidden = input.size(1);
  SGLK_CHECK(tokens <= INT_MAX && hidden <= INT_MAX, "%s: input: expected sizes below 2147483648, got %s", op,
             input.shape().c_str());
  if (tokens == 0 || hidden == 0) return;

  const DeviceGuard guard(input.device());
  const int64_t residual_stride = residual != nullptr ? row_stride(*residual) : 0;
  constexpr int kElementSize = 2;
  const bool aligned =
      is_aligned(16, kElementSize, input.data(), {row_stride(input)}) &&
      is_aligned(16, kElementSize, output.data(), {row_stride(output)}) &&
      is_aligned(16, kElementSize, residual ? residual->data() : nullptr, {residual_stride}) &&
      is_aligned(16, kElementSize, weight.data(), {});
  const Choice choice = choose(tokens, hidden, aligned);
  const NormParams params{output.data(),
                          input.data(),
                          residual != nullptr ? residual->data() : nullptr,
                          weight.data(),
                          row_stride(output),
                          row_stride(input),
                          residual_stride,
                          static_cast<int>(tokens),
                          static_cast<int>(hidden),
                          static_cast<float>(eps),
                          static_cast<float>(weight_bias)};
  LaunchConfig config;
  config.grid.x = checked_grid(op, choice.blocks);
  config.block = choice.threads;
  config.enable_pdl = enable_pdl;
  const int kernel = kernel_index(residual != nullptr ? kFusedAddRmsNorm : kRmsNorm,
                                  input.dtype() == DType::kBFloat16 ? kBf16 : kF16, choice.shape);
  fat_binary().launch(kernel, input.device().index, config, params);
}

void rmsnorm(const Tensor& output, const Tensor& input, const Tensor& weight, double eps, bool enable_pdl) {
  normalize("rmsnorm", output, input, nullptr, weight, eps, 0.0, enable_pdl);
}

void gemma_rmsnorm(const Tensor& output, const Tensor& input, const Tensor& weight, double eps,
                   bool enable_pdl) {
  normalize("gemma_rmsnorm", output, input, nullptr, weight, eps, 1.0, enable_pdl);
}

void fused_add_rmsnorm(const Tensor& input, const Tensor& residual, const Tensor& weight, double eps,
                       bool enable_pdl) {
  normalize("fused_add_rmsnorm", input, input, &residual, weight, eps, 0.0, enable_pdl);
}

void gemma_fused_add_rmsnorm(const Tensor& input, const Tensor& residual, const Tensor& weight, double eps,
                             bool enable_pdl) {
  normalize("gemma_fused_add_rmsnorm", input, input, &residual, weight, eps, 1.0, enable_pdl);
}

}  // namespace

SGLK_OP("rmsnorm(Tensor(a!) output, Tensor input, Tensor weight, float eps, bool enable_pdl) -> ()", rmsnorm);
SGLK_OP("gemma_rmsnorm(Tensor(a!) output, Tensor input, Tensor weight, float eps, bool enable_pdl) -> ()",
        gemma_rmsnorm);
SGLK_OP(
    "fused_add_rmsnorm(Tensor(a!) input, Tensor(b!) residual, Tensor weight, float eps, bool enable_pdl) -> "
    "()",
    fused_add_rmsnorm);
SGLK_OP(
    "gemma_fused_add_rmsnorm(Tensor(a!) input, Tensor(b!) residual, Tensor weight, float eps, bool "
    "enable_pdl) -> ()",
    gemma_fused_add_rmsnorm);

}  // namespace sglk::norm
