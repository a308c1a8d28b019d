// apply_token_bitmask_inplace_cuda: checks, choice and launch.
#include "kernels/grammar.h"

#include <algorithm>
#include <climits>

#include "ops/checks.h"
#include "ops/heuristics/grammar.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_grammar[];

namespace sglk::grammar {
namespace {

constexpr const char* kOp = "apply_token_bitmask_inplace_cuda";

FatBinary& fat_binary() {
  static FatBinary binary("grammar", sglk_fatbin_grammar, kKernelCount, kernel_name);
  return binary;
}

// A vector is a matrix of one row.
int64_t rows_of(const Tensor& t) { return t.dim() == 2 ? t.size(0) : 1; }
int64_t stride_of(const Tensor& t) { return t.dim() == 2 && t.size(0) > 1 ? t.stride(0) : t.size(-1); }

void check_rows(const Argument& a, const char* meaning) {
  SGLK_CHECK(a.tensor.dim() == 1 || a.tensor.dim() == 2, "%s: %s: expected 1-D or 2-D %s, got %ld-D %s", a.op,
             a.name, meaning, a.tensor.dim(), a.tensor.shape().c_str());
  check_last_stride(a);
}

void apply_token_bitmask(const Tensor& logits, const Tensor& bitmask, const std::optional<Tensor>& indices) {
  check_dtype_in({kOp, "logits", logits}, {DType::kBFloat16, DType::kFloat16, DType::kFloat32});
  check_rows({kOp, "logits", logits}, "[rows, vocabulary]");
  check_dtype({kOp, "bitmask", bitmask}, DType::kInt32, "32 tokens a word");
  check_device({kOp, "bitmask", bitmask}, logits.device(), "device of logits");
  check_rows({kOp, "bitmask", bitmask}, "[rows, words]");
  int64_t count = rows_of(logits);
  if (indices) {
    const Argument a{kOp, "indices", *indices};
    check_dim(a, 1, "[count]");
    check_dtype_in(a, {DType::kInt32, DType::kInt64});
    check_device(a, logits.device(), "device of logits");
    check_last_stride(a);
    count = indices->size(0);
  } else {
    SGLK_CHECK(rows_of(bitmask) == count, "%s: bitmask: expected %ld rows (those of logits), got %ld", kOp,
               count, rows_of(bitmask));
  }
  const int64_t rows = std::min(rows_of(logits), rows_of(bitmask));
  SGLK_CHECK(logits.size(-1) <= INT_MAX, "%s: logits.size(-1): expected less than 2147483648, got %ld", kOp,
             logits.size(-1));
  const int64_t words = std::min<int64_t>(bitmask.size(-1), INT_MAX);
  const int64_t tokens = std::min(logits.size(-1), 32 * words);
  if (count == 0 || rows == 0 || tokens == 0) return;

  const DeviceGuard guard(logits.device());
  const int element_size = logits.dtype() == DType::kFloat32 ? 4 : 2;
  const bool aligned = is_aligned(16, element_size, logits.data(), {rows > 1 ? stride_of(logits) : 0});
  const Choice choice = choose(count, tokens, element_size, aligned);
  const GrammarParams params{logits.data(),
                             bitmask.data<int>(),
                             indices ? indices->data() : nullptr,
                             stride_of(logits),
                             stride_of(bitmask),
                             rows,
                             static_cast<int>(tokens),
                             choice.chunks,
                             indices && indices->dtype() == DType::kInt64};
  LaunchConfig config;
  config.grid.x = checked_grid(kOp, choice.blocks);
  config.block = kThreads;
  config.enable_pdl = true;  // the kernels wait for their predecessor themselves
  const ElementType type = logits.dtype() == DType::kBFloat16  ? kBf16
                           : logits.dtype() == DType::kFloat16 ? kF16
                                                               : kF32;
  fat_binary().launch(kernel_index(kApplyTokenBitmask, type, choice.shape), logits.device().index, config,
                      params);
}

}  // namespace

SGLK_OP("apply_token_bitmask_inplace_cuda(Tensor(a!) logits, Tensor bitmask, Tensor? indices=None) -> ()",
        apply_token_bitmask);

}  // namespace sglk::grammar
