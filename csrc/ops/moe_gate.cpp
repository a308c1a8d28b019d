// topk_softmax, moe_fused_gate: checks, choice and launch.
#include "kernels/moe_gate.h"

#include <climits>

#include "ops/checks.h"
#include "ops/heuristics/moe_gate.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_moe_gate[];

namespace sglk::moe_gate {
namespace {

FatBinary& fat_binary() {
  static FatBinary binary("moe_gate", sglk_fatbin_moe_gate, kKernelCount, kernel_name);
  return binary;
}

int64_t row_stride(const Tensor& t) { return t.size(0) > 1 ? t.stride(0) : t.size(1); }

ElementType element_type(DType dtype) {
  return dtype == DType::kBFloat16 ? kBf16 : dtype == DType::kFloat16 ? kF16 : kF32;
}

void check_input(const Argument& input) {
  check_dim(input, 2, "[tokens, experts]");
  check_dtype_in(input, {DType::kBFloat16, DType::kFloat16, DType::kFloat32});
  check_last_stride(input);
  SGLK_CHECK(input.tensor.size(1) <= INT_MAX / 2, "%s: %s.size(1): expected less than 1073741824, got %ld",
             input.op, input.name, input.tensor.size(1));
}

void launch(const char* op, Op which, const Tensor& input, int shape, const MoeGateParams& params) {
  LaunchConfig config;
  config.grid.x = checked_grid(op, blocks(params.tokens));
  config.block = 32 * kWarps;
  config.enable_pdl = true;  // the kernels wait for their predecessor themselves
  fat_binary().launch(kernel_index(which, element_type(input.dtype()), shape), input.device().index, config,
                      params);
}

void topk_softmax(const Tensor& weights, const Tensor& ids, const Tensor& gating, bool renormalize) {
  constexpr const char* op = "topk_softmax";
  check_input({op, "gating_output", gating});
  const Argument w{op, "topk_weights", weights}, i{op, "topk_indices", ids};
  check_dim(w, 2, "[tokens, topk]");
  check_size(w, 0, gating.size(0), "gating_output.size(0)");
  check_dtype(w, DType::kFloat32, "weights");
  check_device(w, gating.device(), "device of gating_output");
  check_last_stride(w);
  check_dim(i, 2, "[tokens, topk]");
  check_size(i, 0, gating.size(0), "gating_output.size(0)");
  check_size(i, 1, weights.size(1), "topk_weights.size(1)");
  check_dtype(i, DType::kInt32, "ids");
  check_device(i, gating.device(), "device of gating_output");
  check_last_stride(i);
  const int64_t topk = weights.size(1), experts = gating.size(1);
  SGLK_CHECK(topk <= experts,
             "%s: topk_weights.size(1): expected at most %ld (gating_output.size(1)), got %ld", op, experts,
             topk);
  if (gating.size(0) == 0 || topk == 0) return;

  const DeviceGuard guard(gating.device());
  MoeGateParams params{};
  params.weights = weights.data<float>();
  params.ids = ids.data<int>();
  params.input = gating.data();
  params.weights_stride = row_stride(weights);
  params.ids_stride = row_stride(ids);
  params.input_stride = row_stride(gating);
  params.tokens = gating.size(0);
  params.experts = static_cast<int>(experts);
  params.topk = static_cast<int>(topk);
  params.is_renormalized = renormalize;
  launch(op, kTopkSoftmax, gating, choose(experts, topk), params);
}

std::tuple<Tensor, Tensor> moe_fused_gate(const Tensor& input, const Tensor& bias, int64_t groups,
                                          int64_t topk_group, int64_t topk, int64_t shared, double factor,
                                          bool is_output_scaled) {
  constexpr const char* op = "moe_fused_gate";
  check_input({op, "input", input});
  const int64_t experts = input.size(1);
  check_dim({op, "bias", bias}, 1, "[experts]");
  check_size({op, "bias", bias}, 0, experts, "input.size(1)");
  check_dtype_in({op, "bias", bias}, {DType::kBFloat16, DType::kFloat16, DType::kFloat32});
  check_device({op, "bias", bias}, input.device(), "device of input");
  check_last_stride({op, "bias", bias});
  SGLK_CHECK(experts >= 1 && experts <= kMaxExperts && (experts & (experts - 1)) == 0,
             "%s: input.size(1): expected a power of two up to %d, got %ld", op, kMaxExperts, experts);
  SGLK_CHECK(
      groups >= 1 && experts % groups == 0 && experts / groups <= 32,
      "%s: num_expert_group: expected a divisor of %ld that leaves groups of at most 32 experts, got %ld", op,
      experts, groups);
  SGLK_CHECK(topk_group >= 1 && topk_group <= groups, "%s: topk_group: expected 1 to %ld, got %ld", op,
             groups, topk_group);
  SGLK_CHECK(topk >= 0 && topk <= kMaxKept, "%s: topk: expected 0 to %d, got %ld", op, kMaxKept, topk);
  const int64_t available = topk_group * (experts / groups);
  SGLK_CHECK(shared >= 0 && shared <= topk && topk - shared <= available,
             "%s: num_fused_shared_experts: expected 0 to %ld that leave at most %ld of topk, got %ld", op,
             topk, available, shared);
  Tensor weights = Tensor::empty({input.size(0), topk}, DType::kFloat32, input.device());
  Tensor ids = Tensor::empty({input.size(0), topk}, DType::kInt32, input.device());
  if (input.size(0) == 0 || topk == 0) return {std::move(weights), std::move(ids)};

  const DeviceGuard guard(input.device());
  const float scale = is_output_scaled ? static_cast<float>(factor) : 1.0f;
  MoeGateParams params{};
  params.weights = weights.data<float>();
  params.ids = ids.data<int>();
  params.input = input.data();
  params.bias = bias.data();
  params.weights_stride = topk;
  params.ids_stride = topk;
  params.input_stride = row_stride(input);
  params.tokens = input.size(0);
  params.experts = static_cast<int>(experts);
  params.topk = static_cast<int>(topk);
  params.group_size = static_cast<int>(experts / groups);
  params.topk_group = static_cast<int>(topk_group);
  params.shared = static_cast<int>(shared);
  params.bias_type = element_type(bias.dtype());
  params.shared_weight = is_output_scaled ? 1.0f : static_cast<float>(1.0 / factor);
  params.scale = scale;
  launch(op, kMoeFusedGate, input, choose(experts, topk), params);
  return {std::move(weights), std::move(ids)};
}

}  // namespace

SGLK_OP(
    "topk_softmax(Tensor(a!) topk_weights, Tensor(b!) topk_indices, Tensor gating_output, bool renormalize) "
    "-> ()",
    topk_softmax);
SGLK_OP(
    "moe_fused_gate(Tensor input, Tensor bias, int num_expert_group, int topk_group, int topk, int "
    "num_fused_shared_experts, float routed_scaling_factor, bool apply_routed_scaling_factor_on_output) -> "
    "(Tensor, Tensor)",
    moe_fused_gate);

}  // namespace sglk::moe_gate
