// awq_dequantize: checks, choice and launch.
#include "kernels/awq.h"

#include "ops/heuristics/awq.h"
#include "ops/packed_checks.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_awq[];

namespace sglk::awq {
namespace {

FatBinary& fat_binary() {
  static FatBinary binary("awq", sglk_fatbin_awq, kKernelCount, kernel_name);
  return binary;
}

Tensor awq_dequantize(const Tensor& qweight, const Tensor& scales, const Tensor& qzeros) {
  constexpr const char* op = "awq_dequantize";
  const Argument weight_arg{op, "qweight", qweight}, scales_arg{op, "scales", scales},
      zeros_arg{op, "qzeros", qzeros};
  check_dim(weight_arg, 2, "[in, out / 8]");
  check_dense(weight_arg, DType::kInt32, "packed weights", qweight.device(), "");
  const int64_t rows = qweight.size(0), words = qweight.size(1);
  check_int(op, "qweight.size(0)", rows);
  check_int(op, "qweight.size(1)", words * 8);
  check_dim(scales_arg, 2, "[groups, out]");
  check_size(scales_arg, 1, words * 8, "8 * qweight.size(1)");
  check_dtype_in(scales_arg, {DType::kFloat16, DType::kBFloat16});
  check_device(scales_arg, qweight.device(), "device of qweight");
  check_contiguous(scales_arg);
  const int64_t groups = scales.size(0);
  SGLK_CHECK(rows == 0 || (groups > 0 && rows % groups == 0),
             "%s: scales.size(0): expected a divisor of %ld (qweight.size(0)), got %ld", op, rows, groups);
  check_dim(zeros_arg, 2, "[groups, out / 8]");
  check_size(zeros_arg, 0, groups, "scales.size(0)");
  check_size(zeros_arg, 1, words, "qweight.size(1)");
  check_dense(zeros_arg, DType::kInt32, "packed zero points", qweight.device(), "device of qweight");

  Tensor out = Tensor::empty({rows, words * 8}, scales.dtype(), qweight.device());
  if (out.numel() == 0) return out;
  const DeviceGuard guard(qweight.device());
  const int32_t device = qweight.device().index;
  const int64_t group_size = rows / groups;
  const Choice choice = choose(rows, words, group_size, is_aligned(16, 2, scales.data(), {}),
                               device_properties(device).multiprocessors);
  const AwqParams params{out.data(),
                         qweight.data<const unsigned>(),
                         scales.data(),
                         qzeros.data<const unsigned>(),
                         rows,
                         static_cast<int>(words),
                         static_cast<int>(group_size),
                         choice.chunks};
  LaunchConfig config;
  config.grid.x = checked_grid(op, choice.blocks);
  config.block = kMaxThreads;
  config.enable_pdl = true;  // the kernels wait for their predecessor themselves
  const ElementType type = scales.dtype() == DType::kFloat16 ? kF16 : kBf16;
  fat_binary().launch(kernel_index(type, choice.shape), device, config, params);
  return out;
}

}  // namespace

SGLK_OP("awq_dequantize(Tensor qweight, Tensor scales, Tensor qzeros) -> Tensor", awq_dequantize);

}  // namespace sglk::awq
