// silu_and_mul, gelu_and_mul, gelu_tanh_and_mul: checks, choice and launch.
#include "kernels/activation.h"

#include <climits>

#include "ops/checks.h"
#include "ops/heuristics/activation.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_activation[];

namespace sglk::activation {
namespace {

FatBinary& fat_binary() {
  static FatBinary binary("activation", sglk_fatbin_activation, kKernelCount, kernel_name);
  return binary;
}

// The stride between consecutive rows of the last dimension, all leading dimensions flattened; throws where
// they have no common one.
int64_t flat_row_stride(const Argument& a) {
  const Tensor& t = a.tensor;
  int64_t stride = t.size(-1), next = 0;
  bool is_first = true;
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    if (t.size(d) == 1) continue;
    if (is_first) stride = t.stride(d);
    SGLK_CHECK(is_first || t.stride(d) == next,
               "%s: %s: expected leading dimensions that flatten into rows, got %s", a.op, a.name,
               t.shape().c_str());
    next = t.stride(d) * t.size(d);
    is_first = false;
  }
  return stride;
}

void activate(const char* op, Op which, const Tensor& out, const Tensor& input) {
  const Argument in_arg{op, "input", input}, out_arg{op, "out", out};
  SGLK_CHECK(input.dim() >= 1, "%s: input: expected [..., 2 * width], got 0-D", op);
  check_dtype_in(in_arg, {DType::kBFloat16, DType::kFloat16, DType::kFloat32});
  SGLK_CHECK(input.size(-1) % 2 == 0, "%s: input.size(-1): expected an even number, got %ld", op,
             input.size(-1));
  check_last_stride(in_arg);
  check_dim(out_arg, input.dim(), "(input.dim())");
  for (int64_t d = 0; d + 1 < input.dim(); ++d) check_size(out_arg, d, input.size(d), "input's");
  check_size(out_arg, input.dim() - 1, input.size(-1) / 2, "half of input.size(-1)");
  check_dtype(out_arg, input.dtype(), "dtype of input");
  check_device(out_arg, input.device(), "device of input");
  check_last_stride(out_arg);
  if (out.numel() == 0) return;
  const int64_t in_stride = flat_row_stride(in_arg), out_stride = flat_row_stride(out_arg);
  const int64_t width = out.size(-1), rows = out.numel() / width;
  SGLK_CHECK(width <= INT_MAX / 2, "%s: input.size(-1): expected less than 2147483648, got %ld", op,
             input.size(-1));

  const DeviceGuard guard(input.device());
  const int element_size = input.dtype() == DType::kFloat32 ? 4 : 2;
  const bool aligned = is_aligned(16, element_size, input.data(), {in_stride, width}) &&
                       is_aligned(16, element_size, out.data(), {out_stride});
  const int32_t device = input.device().index;
  const Choice choice = choose(rows, width, element_size, aligned, device_properties(device).multiprocessors);
  const ActivationParams params{out.data(),        input.data(), out_stride,
                                in_stride,         rows,         static_cast<int>(width),
                                choice.lanes_log2, choice.chunks};
  LaunchConfig config;
  config.grid.x = checked_grid(op, choice.blocks);
  config.block = choice.threads;
  config.enable_pdl = true;  // the kernels wait for their predecessor themselves
  const ElementType type = input.dtype() == DType::kBFloat16  ? kBf16
                           : input.dtype() == DType::kFloat16 ? kF16
                                                              : kF32;
  fat_binary().launch(kernel_index(which, type, choice.shape), device, config, params);
}

void silu_and_mul(const Tensor& out, const Tensor& input) { activate("silu_and_mul", kSilu, out, input); }
void gelu_and_mul(const Tensor& out, const Tensor& input) { activate("gelu_and_mul", kGelu, out, input); }
void gelu_tanh_and_mul(const Tensor& out, const Tensor& input) {
  activate("gelu_tanh_and_mul", kGeluTanh, out, input);
}

}  // namespace

SGLK_OP("silu_and_mul(Tensor(a!) out, Tensor input) -> ()", silu_and_mul);
SGLK_OP("gelu_and_mul(Tensor(a!) out, Tensor input) -> ()", gelu_and_mul);
SGLK_OP("gelu_tanh_and_mul(Tensor(a!) out, Tensor input) -> ()", gelu_tanh_and_mul);

}  // namespace sglk::activation
