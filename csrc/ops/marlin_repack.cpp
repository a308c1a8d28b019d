// awq_marlin_repack, awq_marlin_moe_repack, gptq_marlin_repack: checks, choice and launch.
#include "kernels/marlin_repack.h"

#include "ops/heuristics/marlin_repack.h"
#include "ops/packed_checks.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_marlin_repack[];

namespace sglk::marlin_repack {
namespace {

FatBinary& fat_binary() {
  static FatBinary binary("marlin_repack", sglk_fatbin_marlin_repack, kKernelCount, kernel_name);
  return binary;
}

void check_sizes(const char* op, int64_t size_k, int64_t size_n, int64_t num_bits) {
  SGLK_CHECK(num_bits == 4 || num_bits == 8, "%s: num_bits: expected 4 or 8, got %ld", op, num_bits);
  check_multiple(op, "size_k", size_k, 16);
  check_multiple(op, "size_n", size_n, 64);
  check_int(op, "size_k", size_k);
  check_int(op, "size_n", size_n);
}

// size_k: of all experts together. perm: null, or [size_k].
void repack(const char* op, Source source, const Tensor& output, const Tensor& input, const int* perm,
            int64_t size_k, int64_t size_n, int64_t num_bits) {
  if (output.numel() == 0) return;
  const DeviceGuard guard(input.device());
  const Choice choice = choose(source, static_cast<int>(num_bits), size_k, size_n);
  const MarlinRepackParams params{output.data<unsigned>(),       input.data<unsigned>(), perm, size_k,
                                  static_cast<int>(size_n / 64), choice.chunks};
  LaunchConfig config;
  config.grid.x = checked_grid(op, choice.blocks);
  config.block = kMaxThreads;
  config.enable_pdl = true;  // the kernels wait for their predecessor themselves
  fat_binary().launch(choice.kernel, input.device().index, config, params);
}

Tensor awq_marlin_repack(const Tensor& b_q_weight, int64_t size_k, int64_t size_n, int64_t num_bits) {
  constexpr const char* op = "awq_marlin_repack";
  const Argument a{op, "b_q_weight", b_q_weight};
  check_sizes(op, size_k, size_n, num_bits);
  check_dim(a, 2, "[size_k, size_n * num_bits / 32]");
  check_size(a, 0, size_k, "size_k");
  check_size(a, 1, size_n * num_bits / 32, "size_n * num_bits / 32");
  check_dense(a, DType::kInt32, "packed weights", b_q_weight.device(), "");
  Tensor out = Tensor::empty({size_k / 16, size_n * num_bits / 2}, DType::kInt32, b_q_weight.device());
  repack(op, kAwq, out, b_q_weight, nullptr, size_k, size_n, num_bits);
  return out;
}

// perm: as published, never read.
Tensor awq_marlin_moe_repack(const Tensor& b_q_weight, const Tensor& /*perm*/, int64_t size_k, int64_t size_n,
                             int64_t num_bits) {
  constexpr const char* op = "awq_marlin_moe_repack";
  const Argument a{op, "b_q_weight", b_q_weight};
  check_sizes(op, size_k, size_n, num_bits);
  check_dim(a, 3, "[experts, size_k, size_n * num_bits / 32]");
  check_size(a, 1, size_k, "size_k");
  check_size(a, 2, size_n * num_bits / 32, "size_n * num_bits / 32");
  check_dense(a, DType::kInt32, "packed weights", b_q_weight.device(), "");
  const int64_t experts = b_q_weight.size(0);
  Tensor out =
      Tensor::empty({experts, size_k / 16, size_n * num_bits / 2}, DType::kInt32, b_q_weight.device());
  repack(op, kAwq, out, b_q_weight, nullptr, experts * size_k, size_n, num_bits);
  return out;
}

Tensor gptq_marlin_repack(const Tensor& b_q_weight, const Tensor& perm, int64_t size_k, int64_t size_n,
                          int64_t num_bits) {
  constexpr const char* op = "gptq_marlin_repack";
  const Argument a{op, "b_q_weight", b_q_weight}, perm_arg{op, "perm", perm};
  check_sizes(op, size_k, size_n, num_bits);
  check_dim(a, 2, "[size_k * num_bits / 32, size_n]");
  check_size(a, 0, size_k * num_bits / 32, "size_k * num_bits / 32");
  check_size(a, 1, size_n, "size_n");
  check_dense(a, DType::kInt32, "packed weights", b_q_weight.device(), "");
  const bool is_permuted = perm.numel() != 0;
  if (is_permuted) {
    check_dim(perm_arg, 1, "[size_k], or empty");
    check_size(perm_arg, 0, size_k, "size_k");
    check_dense(perm_arg, DType::kInt32, "indices", b_q_weight.device(), "device of b_q_weight");
  }
  Tensor out = Tensor::empty({size_k / 16, size_n * num_bits / 2}, DType::kInt32, b_q_weight.device());
  repack(op, is_permuted ? kGptqPermuted : kGptq, out, b_q_weight,
         is_permuted ? perm.data<const int>() : nullptr, size_k, size_n, num_bits);
  return out;
}

}  // namespace

SGLK_OP("awq_marlin_repack(Tensor b_q_weight, int size_k, int size_n, int num_bits) -> Tensor",
        awq_marlin_repack);
SGLK_OP(
    "awq_marlin_moe_repack(Tensor b_q_weight, Tensor perm, int size_k, int size_n, int num_bits) -> Tensor",
    awq_marlin_moe_repack);
SGLK_OP("gptq_marlin_repack(Tensor b_q_weight, Tensor perm, int size_k, int size_n, int num_bits) -> Tensor",
        gptq_marlin_repack);

}  // namespace sglk::marlin_repack
