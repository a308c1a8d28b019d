// What gptq_marlin_gemm asks of its arguments.
#pragma once

#include <cstdint>
#include <optional>

#include "ops/heuristics/marlin_gemm.h"
#include "ops/packed_checks.h"

namespace sglk::marlin_gemm {

inline constexpr const char* kOp = "gptq_marlin_gemm";

// ids of sgl_kernel.scalar_type.
inline constexpr int64_t kUint4Id = 1125899906843648, kUint4B8Id = 1125899907892224,
                         kUint8B128Id = 1125899923621888, kFloat8E4M3Id = 2814749767172868;

inline bool is_given(const std::optional<Tensor>& t) { return t && t->numel() > 0; }

inline void check_matrix(const Argument& x, int64_t rows, const char* rows_reason, int64_t columns,
                         const char* columns_reason) {
  check_dim(x, 2, "(a matrix)");
  check_size(x, 0, rows, rows_reason);
  check_size(x, 1, columns, columns_reason);
}

// What the kernels read 16 bytes at once.
inline void check_weights(const Argument& x, DType dtype, const char* dtype_reason, const Tensor& a) {
  check_dense(x, dtype, dtype_reason, a.device(), "device of a");
  SGLK_CHECK(is_aligned(16, 1, x.tensor.data(), {}), "%s: %s: expected data aligned to 16 bytes, got %p",
             x.op, x.name, x.tensor.data());
}

inline void check_vector(const Argument& x, int64_t size, const char* reason, DType dtype, const Tensor& a) {
  check_dim(x, 1, "(a vector)");
  check_size(x, 0, size, reason);
  check_dtype(x, dtype, "fixed by the op");
  check_device(x, a.device(), "device of a");
  check_last_stride(x);
}

inline WeightType weight_type(int64_t id) {
  SGLK_CHECK(id == kUint4Id || id == kUint4B8Id || id == kUint8B128Id || id == kFloat8E4M3Id,
             "%s: b_q_type: expected uint4, uint4b8, uint8b128 or float8_e4m3fn, got the type of id %ld", kOp,
             id);
  return id == kUint8B128Id ? kUint8 : id == kFloat8E4M3Id ? kFloat8 : kUint4;
}

// Rows of a group; 0: there is one, or they are in the order of g_idx.
inline int64_t checked_group(const Tensor& scales, int64_t k, bool is_act_order) {
  const int64_t groups = scales.size(0);
  SGLK_CHECK(groups >= 1, "%s: b_scales.size(0): expected at least one group, got 0", kOp);
  if (groups == 1 || is_act_order) return 0;
  const int64_t size = k / groups;
  SGLK_CHECK(
      k % groups == 0 && (size == 32 || size == 64 || size == 128),
      "%s: b_scales.size(0): expected 1 group, or groups of 32, 64 or 128 of size_k's %ld rows, got %ld", kOp,
      k, groups);
  return size;
}

inline void check_sizes(int64_t n, int64_t k) {
  check_multiple(kOp, "size_n", n, 64);
  SGLK_CHECK(k > 0 && k % 128 == 0, "%s: size_k: expected a positive multiple of 128, got %ld", kOp, k);
}

// Of the op.
struct Arguments {
  const Tensor &a, &c, &b_q_weight, &b_scales;
  const std::optional<Tensor>&b_zeros, &g_idx, &perm;
  const Tensor& workspace;
  const std::optional<Tensor>& b_bias;
  int64_t b_q_type_id, size_m, size_n, size_k;
};

// What they come to.
struct Problem {
  WeightType weight;
  bool has_order;     // g_idx and perm are given
  bool is_act_order;  // and there are groups to choose from
  int64_t group;      // as checked_group
};

// All but `path`, and how large the workspace is, which depends on what is chosen.
inline Problem checked(const Arguments& arguments) {
  const auto& [a, c, b_q_weight, b_scales, b_zeros, g_idx, perm, workspace, b_bias, b_q_type_id, size_m,
               size_n, size_k] = arguments;
  const WeightType weight = weight_type(b_q_type_id);
  check_sizes(size_n, size_k);
  const Argument a_arg{kOp, "a", a}, c_arg{kOp, "c", c};
  check_dim(a_arg, 2, "[size_m, size_k]");
  check_size(a_arg, 0, size_m, "size_m");
  check_size(a_arg, 1, size_k, "size_k");
  check_dtype_in(a_arg, {DType::kFloat16, DType::kBFloat16});
  check_last_stride(a_arg);
  check_matrix(c_arg, size_m, "size_m", size_n, "size_n");
  check_dtype(c_arg, a.dtype(), "dtype of a");
  check_device(c_arg, a.device(), "device of a");
  check_last_stride(c_arg);
  SGLK_CHECK(is_aligned(4, 2, c.data(), {size_m > 1 ? c.stride(0) : 0}),
             "%s: c: expected rows aligned to 4 bytes", kOp);
  const Argument weight_arg{kOp, "b_q_weight", b_q_weight}, scales_arg{kOp, "b_scales", b_scales};
  check_matrix(weight_arg, size_k / 16, "size_k / 16", size_n * bits(weight) / 2, "size_n * bits / 2");
  check_weights(weight_arg, DType::kInt32, "Marlin tiles", a);
  check_dim(scales_arg, 2, "[groups, size_n]");
  check_size(scales_arg, 1, size_n, "size_n");
  check_weights(scales_arg, a.dtype(), "dtype of a", a);

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
    check_matrix(zeros, b_scales.size(0), "b_scales.size(0)", size_n / 8, "size_n / 8");
    check_weights(zeros, DType::kInt32, "eight zero points a word", a);
  }
  const bool is_act_order = has_order && b_scales.size(0) > 1;
  const int64_t group = checked_group(b_scales, size_k, is_act_order);
  if (is_given(b_bias)) check_vector({kOp, "b_bias", *b_bias}, size_n, "size_n", a.dtype(), a);
  check_dense({kOp, "workspace", workspace}, DType::kInt32, "fixed by the op", a.device(), "device of a");
  return {weight, has_order, is_act_order, group};
}

}  // namespace sglk::marlin_gemm
