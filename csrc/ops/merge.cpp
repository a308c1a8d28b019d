// merge_state, merge_state_v2: checks, choice and launch.
#include "kernels/merge.h"

#include <climits>

#include "ops/checks.h"
#include "ops/heuristics/merge.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_merge[];

namespace sglk::merge {
namespace {

FatBinary& fat_binary() {
  static FatBinary binary("merge", sglk_fatbin_merge, kKernelCount, kernel_name);
  return binary;
}

// `other` has the shape of v_a, or that shape without its last dimension.
void check_like(const Argument& other, const Tensor& v_a, bool is_value) {
  check_dim(other, is_value ? 3 : 2, is_value ? "[tokens, heads, head_dim]" : "[tokens, heads]");
  for (int64_t d = 0; d < other.tensor.dim(); ++d) check_size(other, d, v_a.size(d), "that of v_a");
  check_dtype(other, is_value ? v_a.dtype() : DType::kFloat32, is_value ? "dtype of v_a" : "a log-sum-exp");
  check_device(other, v_a.device(), "device of v_a");
  check_contiguous(other);
}

void merge(const char* op, Op which, const Tensor& v_a, const Tensor& s_a, const Tensor& v_b,
           const Tensor& s_b, const Tensor& v_merged, const Tensor& s_merged) {
  const Argument first{op, "v_a", v_a};
  check_dim(first, 3, "[tokens, heads, head_dim]");
  check_dtype_in(first, {DType::kBFloat16, DType::kFloat16, DType::kFloat32});
  check_contiguous(first);
  check_like({op, "s_a", s_a}, v_a, false);
  check_like({op, "v_b", v_b}, v_a, true);
  check_like({op, "s_b", s_b}, v_a, false);
  check_like({op, "v_merged", v_merged}, v_a, true);
  check_like({op, "s_merged", s_merged}, v_a, false);
  const int64_t rows = s_a.numel(), dim = v_a.size(2);
  SGLK_CHECK(dim <= INT_MAX / 2, "%s: v_a.size(2): expected less than 1073741824, got %ld", op, dim);
  SGLK_CHECK(rows == 0 || dim > 0, "%s: v_a.size(2): expected at least 1, got 0", op);
  if (rows == 0) return;

  const DeviceGuard guard(v_a.device());
  const int element_size = v_a.dtype() == DType::kFloat32 ? 4 : 2;
  const bool aligned = is_aligned(16, element_size, v_a.data(), {dim}) &&
                       is_aligned(16, element_size, v_b.data(), {}) &&
                       is_aligned(16, element_size, v_merged.data(), {});
  const int32_t device = v_a.device().index;
  const Choice choice = choose(rows, dim, element_size, aligned, device_properties(device).multiprocessors);
  const int64_t units = aligned ? dim * element_size / 16 : dim;
  const MergeParams params{v_merged.data(),   s_merged.data<float>(), v_a.data(), v_b.data(),
                           s_a.data<float>(), s_b.data<float>(),      rows,       static_cast<int>(units),
                           choice.lanes_log2};
  LaunchConfig config;
  config.grid.x = checked_grid(op, choice.blocks);
  config.block = choice.threads;
  config.enable_pdl = true;  // the kernels wait for their predecessor themselves
  const ElementType type = v_a.dtype() == DType::kBFloat16  ? kBf16
                           : v_a.dtype() == DType::kFloat16 ? kF16
                                                            : kF32;
  fat_binary().launch(kernel_index(which, type, choice.shape), device, config, params);
}

void merge_state(const Tensor& v_a, const Tensor& s_a, const Tensor& v_b, const Tensor& s_b,
                 const Tensor& v_merged, const Tensor& s_merged) {
  merge("merge_state", kMergeState, v_a, s_a, v_b, s_b, v_merged, s_merged);
}

void merge_state_v2(const Tensor& v_a, const Tensor& s_a, const Tensor& v_b, const Tensor& s_b,
                    const Tensor& v_merged, const Tensor& s_merged) {
  merge("merge_state_v2", kMergeStateV2, v_a, s_a, v_b, s_b, v_merged, s_merged);
}

}  // namespace

SGLK_OP(
    "merge_state(Tensor v_a, Tensor s_a, Tensor v_b, Tensor s_b, Tensor(a!) v_merged, Tensor(b!) s_merged) "
    "-> ()",
    merge_state);
SGLK_OP(
    "merge_state_v2(Tensor v_a, Tensor s_a, Tensor v_b, Tensor s_b, Tensor(a!) v_merged, Tensor(b!) "
    "s_merged) -> ()",
    merge_state_v2);

}  // namespace sglk::merge
