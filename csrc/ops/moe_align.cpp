// moe_align_block_size: checks, choice and launch.
#include "kernels/moe_align.h"

#include <climits>
#include <optional>

#include "ops/checks.h"
#include "ops/heuristics/moe_align.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_moe_align[];

namespace sglk::moe_align {
namespace {

constexpr const char* kOp = "moe_align_block_size";

FatBinary& fat_binary() {
  static FatBinary binary("moe_align", sglk_fatbin_moe_align, kKernelCount, kernel_name);
  return binary;
}

void check_output(const Argument& a, const Tensor& ids) {
  check_dim(a, 1, "[size]");
  check_dtype(a, DType::kInt32, "indices");
  check_device(a, ids.device(), "device of topk_ids");
  check_last_stride(a);
  SGLK_CHECK(a.tensor.numel() <= INT_MAX / 2, "%s: %s.size(0): expected less than 1073741824, got %ld", kOp,
             a.name, a.tensor.numel());
}

void moe_align_block_size(const Tensor& ids, int64_t num_experts, int64_t block_size, const Tensor& sorted,
                          const Tensor& labels, const Tensor& total,
                          const Tensor& /*cumsum_buffer: not needed*/, bool is_padded) {
  check_dtype_in({kOp, "topk_ids", ids}, {DType::kInt32, DType::kInt64});
  check_contiguous({kOp, "topk_ids", ids});
  check_output({kOp, "sorted_token_ids", sorted}, ids);
  check_output({kOp, "experts_ids", labels}, ids);
  check_output({kOp, "num_tokens_post_pad", total}, ids);
  SGLK_CHECK(total.numel() >= 1, "%s: num_tokens_post_pad.size(0): expected at least 1, got 0", kOp);
  SGLK_CHECK(num_experts >= 1 && num_experts <= 65536, "%s: num_experts: expected 1 to 65536, got %ld", kOp,
             num_experts);
  SGLK_CHECK(block_size >= 1 && block_size <= 65536, "%s: block_size: expected 1 to 65536, got %ld", kOp,
             block_size);
  const int64_t choices = ids.numel();
  SGLK_CHECK(choices <= INT_MAX / 2 && choices + num_experts * block_size <= INT_MAX / 2,
             "%s: topk_ids: expected less than 1073741824 elements with their padding, got %s", kOp,
             ids.shape().c_str());

  const DeviceGuard guard(ids.device());
  const int32_t device = ids.device().index;
  const Choice choice = choose(choices > 0 ? choices : 1, num_experts, is_padded ? sorted.numel() : 0,
                               device_properties(device).shared_memory_per_block);
  SGLK_CHECK(choice.placers > 0,
             "%s: num_experts: expected a number whose counters fit into %d bytes, got %ld", kOp,
             device_properties(device).shared_memory_per_block, num_experts);
  std::optional<Tensor> counts;
  if (!choice.is_single) counts = Tensor::empty({choice.blocks, num_experts}, DType::kInt32, ids.device());
  const MoeAlignParams params{ids.data(),
                              sorted.data<int>(),
                              labels.data<int>(),
                              total.data<int>(),
                              counts ? counts->data<int>() : nullptr,
                              static_cast<int>(choices),
                              static_cast<int>(sorted.numel()),
                              static_cast<int>(labels.numel()),
                              static_cast<int>(num_experts),
                              static_cast<int>(block_size),
                              static_cast<int>(choice.segment),
                              choice.placers,
                              is_padded};
  LaunchConfig config;
  config.grid.x = static_cast<uint32_t>(choice.blocks);
  config.block = kThreads;
  config.enable_pdl = true;  // the kernels wait for their predecessor themselves
  const IdType type = ids.dtype() == DType::kInt64 ? kI64 : kI32;
  if (!choice.is_single) {
    config.shared_bytes = static_cast<uint32_t>(num_experts * 4);
    fat_binary().launch(kernel_index(type, kCount), device, config, params);
  }
  config.shared_bytes = static_cast<uint32_t>(choice.shared);
  fat_binary().launch(kernel_index(type, choice.is_single ? kSingle : kPlace), device, config, params);
}

}  // namespace

SGLK_OP(
    "moe_align_block_size(Tensor topk_ids, int num_experts, int block_size, Tensor(a!) sorted_token_ids, "
    "Tensor(b!) experts_ids, Tensor(c!) num_tokens_post_pad, Tensor(d!) cumsum_buffer, bool "
    "pad_sorted_token_ids) -> ()",
    moe_align_block_size);

}  // namespace sglk::moe_align
