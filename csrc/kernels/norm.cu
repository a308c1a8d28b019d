// RMS normalisation, for fp16 and bf16, sm_80 and later.
//
//   rmsnorm:            output = x · rsqrt(mean(x²) + eps) · (weight + weight_bias),  x = input
//   fused_add_rmsnorm:  the same with x = input + residual, unrounded; residual becomes round(x)
//
// fp32 arithmetic, one rounding. Three shapes of the same computation, chosen by csrc/ops/heuristics/norm.h:
//
//   rows   kLanes lanes own a row, kVectors · 16 bytes each: no barrier (head_dim-wide rows)
//   block  a block owns a row and holds it in registers, kVectors · 16 bytes a thread
//   element_8  the same with eight single elements a thread (odd sizes, unaligned rows)
//   any    a block walks a row twice in single elements (very long rows)
#include "common/pdl.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"
#include "norm.h"

namespace sglk {

constexpr int kRowsThreads = 128;

template <class T, bool kFused>
struct NormVector {
  static constexpr int kSize = kVectorSize<T>;
  Vector<T, kSize> x;
  Vector<T, kFused ? kSize : 1> residual;

  __device__ __forceinline__ void load_from(const T* input, const T* residual_in) {
    x = load<T, kSize>(input);
    if constexpr (kFused) residual = load<T, kSize>(residual_in);
  }
  __device__ __forceinline__ float value(int i) const {
    if constexpr (kFused) return to_float(x[i]) + to_float(residual[i]);
    return to_float(x[i]);
  }
  __device__ __forceinline__ float sum_of_squares() {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kSize; ++i) sum += value(i) * value(i);
    keep_packed(x);
    if constexpr (kFused) keep_packed(residual);
    return sum;
  }
  __device__ __forceinline__ void finish(T* output, T* residual_out, const Vector<T, kSize>& weight,
                                         float scale, const NormParams& p) const {
    Vector<T, kSize> out, sum;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      out[i] = from_float<T>(value(i) * scale * (to_float(weight[i]) + p.weight_bias));
      if constexpr (kFused) sum[i] = from_float<T>(value(i));
    }
    store(output, out);
    if constexpr (kFused) store(residual_out, sum);
  }
};

template <class T, bool kFused, int kLanes, int kVectors>
__device__ __forceinline__ void norm_rows(const NormParams& p) {
  constexpr int kSize = kVectorSize<T>;
  const int lane = threadIdx.x % kLanes;
  const int64_t token = int64_t{blockIdx.x} * (kRowsThreads / kLanes) + threadIdx.x / kLanes;
  const bool is_token = token < p.tokens;
  const int vectors =
      is_token ? p.hidden / kSize : 0;  // the last block's spare lanes still take part in shuffles
  const T* const input = static_cast<const T*>(p.input) + token * p.input_stride;
  T* const residual = static_cast<T*>(p.residual) + token * p.residual_stride;
  T* const output = static_cast<T*>(p.output) + token * p.output_stride;
  let_successor_start();
  wait_for_predecessor();

  NormVector<T, kFused> row[kVectors];
  Vector<T, kSize> weight[kVectors];
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = lane + v * kLanes;
    row[v] = {};
    if (i < vectors) row[v].load_from(input + i * kSize, residual + i * kSize);
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = lane + v * kLanes;
    if (i < vectors) weight[v] = load<T, kSize>(static_cast<const T*>(p.weight) + i * kSize);
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) sum += row[v].sum_of_squares();
  const float scale = rsqrtf(sum_lanes<kLanes>(sum) / p.hidden + p.eps);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = lane + v * kLanes;
    if (i < vectors) row[v].finish(output + i * kSize, residual + i * kSize, weight[v], scale, p);
  }
}

template <class T, bool kFused, int kVectors>
__device__ __forceinline__ void norm_block(const NormParams& p) {
  constexpr int kSize = kVectorSize<T>;
  const int64_t token = blockIdx.x;
  const int vectors = p.hidden / kSize;
  const T* const input = static_cast<const T*>(p.input) + token * p.input_stride;
  T* const residual = static_cast<T*>(p.residual) + token * p.residual_stride;
  T* const output = static_cast<T*>(p.output) + token * p.output_stride;
  let_successor_start();
  wait_for_predecessor();

  NormVector<T, kFused> row[kVectors];
  Vector<T, kSize> weight[kVectors];
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = threadIdx.x + v * blockDim.x;
    row[v] = {};
    if (i < vectors) row[v].load_from(input + i * kSize, residual + i * kSize);
  }
  constexpr bool kEarly = kVectors <= 4;  // in flight during the reduction, where registers allow
  const auto load_weight = [&](int v) {
    const int i = threadIdx.x + v * blockDim.x;
    if (i < vectors) weight[v] = load<T, kSize>(static_cast<const T*>(p.weight) + i * kSize);
  };
  if constexpr (kEarly) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) load_weight(v);
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) sum += row[v].sum_of_squares();
  const float scale = rsqrtf(sum_block(sum) / p.hidden + p.eps);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = threadIdx.x + v * blockDim.x;
    if constexpr (!kEarly) load_weight(v);
    keep_packed(weight[v]);
    if (i < vectors) row[v].finish(output + i * kSize, residual + i * kSize, weight[v], scale, p);
  }
}

template <class T, bool kFused, int kElements>
__device__ __forceinline__ void norm_elements(const NormParams& p) {
  const int64_t token = blockIdx.x;
  const T* const input = static_cast<const T*>(p.input) + token * p.input_stride;
  T* const residual = static_cast<T*>(p.residual) + token * p.residual_stride;
  T* const output = static_cast<T*>(p.output) + token * p.output_stride;
  const T* const weight = static_cast<const T*>(p.weight);
  let_successor_start();
  wait_for_predecessor();

  // Past the end a thread reads the last element again, so that no branch parts the loads.
  float x[kElements], w[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int i = min(static_cast<int>(threadIdx.x + e * blockDim.x), p.hidden - 1);
    x[e] = to_float(input[i]);
    if constexpr (kFused) x[e] += to_float(residual[i]);
    w[e] = to_float(weight[i]) + p.weight_bias;
  }
  float sum = 0.0f;
#pragma unroll
  for (int e = 0; e < kElements; ++e) sum += threadIdx.x + e * blockDim.x < p.hidden ? x[e] * x[e] : 0.0f;
  // The barrier in here also keeps a clamped read apart from the write of its element: both may be one
  // tensor.
  const float scale = rsqrtf(sum_block(sum) / p.hidden + p.eps);
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int i = threadIdx.x + e * blockDim.x;
    if (i < p.hidden) {
      if constexpr (kFused) residual[i] = from_float<T>(x[e]);
      output[i] = from_float<T>(x[e] * scale * w[e]);
    }
  }
}

template <class T, bool kFused>
__device__ __forceinline__ void norm_any(const NormParams& p) {
  const int64_t token = blockIdx.x;
  const T* const input = static_cast<const T*>(p.input) + token * p.input_stride;
  T* const residual = static_cast<T*>(p.residual) + token * p.residual_stride;
  T* const output = static_cast<T*>(p.output) + token * p.output_stride;
  const T* const weight = static_cast<const T*>(p.weight);
  let_successor_start();
  wait_for_predecessor();

  const auto value = [&](unsigned i) {
    return kFused ? to_float(input[i]) + to_float(residual[i]) : to_float(input[i]);
  };
  float sum = 0.0f;
  const unsigned hidden = p.hidden;  // unsigned: the last step from a row of almost 2^31 elements passes that
  for (unsigned i = threadIdx.x; i < hidden; i += blockDim.x) sum += value(i) * value(i);
  const float scale = rsqrtf(sum_block(sum) / p.hidden + p.eps);
  for (unsigned i = threadIdx.x; i < hidden; i += blockDim.x) {
    const float x = value(i);
    if (kFused) residual[i] = from_float<T>(x);
    output[i] = from_float<T>(x * scale * (to_float(weight[i]) + p.weight_bias));
  }
}

}  // namespace sglk

#define SGLK_NORM_ROWS(op, fused, dtype, lanes, vectors)                                    \
  extern "C" __global__ void __launch_bounds__(sglk::kRowsThreads)                          \
      op##_##dtype##_rows_##lanes##x##vectors(const __grid_constant__ sglk::NormParams p) { \
    sglk::norm_rows<sglk::dtype, fused, lanes, vectors>(p);                                 \
  }

#define SGLK_NORM_BLOCK(op, fused, dtype, vectors, threads)                        \
  extern "C" __global__ void __launch_bounds__(threads)                            \
      op##_##dtype##_block_##vectors(const __grid_constant__ sglk::NormParams p) { \
    sglk::norm_block<sglk::dtype, fused, vectors>(p);                              \
  }

#define SGLK_NORM(op, fused, dtype)                                          \
  SGLK_NORM_ROWS(op, fused, dtype, 4, 1)                                     \
  SGLK_NORM_ROWS(op, fused, dtype, 8, 1)                                     \
  SGLK_NORM_ROWS(op, fused, dtype, 16, 1)                                    \
  SGLK_NORM_ROWS(op, fused, dtype, 32, 1)                                    \
  SGLK_NORM_ROWS(op, fused, dtype, 32, 2)                                    \
  SGLK_NORM_ROWS(op, fused, dtype, 32, 4)                                    \
  SGLK_NORM_BLOCK(op, fused, dtype, 1, 1024)                                 \
  SGLK_NORM_BLOCK(op, fused, dtype, 2, 1024)                                 \
  SGLK_NORM_BLOCK(op, fused, dtype, 3, 512)                                  \
  SGLK_NORM_BLOCK(op, fused, dtype, 4, 512)                                  \
  SGLK_NORM_BLOCK(op, fused, dtype, 8, 512)                                  \
  extern "C" __global__ void __launch_bounds__(1024)                         \
      op##_##dtype##_element_8(const __grid_constant__ sglk::NormParams p) { \
    sglk::norm_elements<sglk::dtype, fused, 8>(p);                           \
  }                                                                          \
  extern "C" __global__ void __launch_bounds__(1024)                         \
      op##_##dtype##_any(const __grid_constant__ sglk::NormParams p) {       \
    sglk::norm_any<sglk::dtype, fused>(p);                                   \
  }

SGLK_NORM(rmsnorm, false, bf16)
SGLK_NORM(rmsnorm, false, f16)
SGLK_NORM(fused_add_rmsnorm, true, bf16)
SGLK_NORM(fused_add_rmsnorm, true, f16)
