// Gated activations, for fp16, bf16 and fp32, sm_80 and later.
//
//   output[i] = act(input[i]) · input[width + i]
//
//   silu_and_mul       act(x) = x / (1 + e^−x)
//   gelu_and_mul       act(x) = x/2 · erfc(−x/√2), which keeps its relative accuracy where 1 + erf cancels
//   gelu_tanh_and_mul  act(x) = x/2 · (1 + tanh(u)) = x / (1 + e^−2u),  u = √(2/π) · (x + 0.044715 x³)
//
// fp32 arithmetic, one rounding. A block covers (blockDim.x / lanes) rows × (lanes · kVectors) vectors, where
// a vector is 16 bytes, or one element where rows are not aligned to that.
#include "activation.h"
#include "common/pdl.cuh"
#include "common/vector.cuh"

namespace sglk {

constexpr int kMaxThreads = 128;

// x / (1 + e^−y), by e^−|y| ≤ 1: the divisor is 1 to 2, so that no reciprocal is flushed.
__device__ __forceinline__ float gate(float x, float y) {
  const float t = __expf(-fabsf(y));
  return (y < 0.0f ? x * t : x) * __fdividef(1.0f, 1.0f + t);
}

// erfc(z) for z ≥ 0 with a relative error of 1.2e-7 (Press et al., Numerical Recipes, §6.2, erfcc): a third
// of the instructions of erfcf, with which a 16-bit gelu is bound by arithmetic.
__device__ __forceinline__ float fast_erfc(float z) {
  const float t = __frcp_rn(1.0f + 0.5f * z);
  float p = 0.17087277f;
  p = p * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  return t * __expf(p - z * z);
}

struct silu {
  template <class T>
  static __device__ __forceinline__ float apply(float x) {
    return gate(x, x);
  }
};
struct gelu {
  template <class T>
  static __device__ __forceinline__ float apply(float x) {
    constexpr float kInverseSqrt2 = 0.70710678118654752f;
    if constexpr (sizeof(T) == 4) return 0.5f * x * erfcf(-x * kInverseSqrt2);
    const float tail = fast_erfc(fabsf(x) * kInverseSqrt2);
    return 0.5f * x * (x < 0.0f ? tail : 2.0f - tail);
  }
};
struct gelu_tanh {
  template <class T>
  static __device__ __forceinline__ float apply(float x) {
    return gate(x, 1.5957691216057308f * (x + 0.044715f * x * x * x));
  }
};

template <class Act, class T, int kSize, int kVectors>
__device__ __forceinline__ void activate(const ActivationParams& p) {
  const int lanes = 1 << p.lanes_log2;
  const int rows_per_block = blockDim.x >> p.lanes_log2;
  const int64_t row =
      int64_t{blockIdx.x / static_cast<unsigned>(p.chunks)} * rows_per_block + (threadIdx.x >> p.lanes_log2);
  const int chunk = blockIdx.x % static_cast<unsigned>(p.chunks);
  const int first = chunk * lanes * kVectors + (threadIdx.x & (lanes - 1));
  const int vectors = p.width / kSize;
  const T* const input = static_cast<const T*>(p.input) + row * p.input_stride;
  T* const output = static_cast<T*>(p.output) + row * p.output_stride;
  let_successor_start();
  wait_for_predecessor();
  if (row >= p.rows) return;

  Vector<T, kSize> x[kVectors], y[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t i = first + v * lanes;
    if (i < vectors) {
      x[v] = load<T, kSize>(input + i * kSize);
      y[v] = load<T, kSize>(input + p.width + i * kSize);
    }
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t i = first + v * lanes;
    if (i < vectors) {
      Vector<T, kSize> out;
#pragma unroll
      for (int e = 0; e < kSize; ++e)
        out[e] = from_float<T>(Act::template apply<T>(to_float(x[v][e])) * to_float(y[v][e]));
      store(output + i * kSize, out);
    }
  }
}

}  // namespace sglk

#define SGLK_ACTIVATION_SHAPE(act, dtype, type, shape, size, vectors)                     \
  extern "C" __global__ void __launch_bounds__(sglk::kMaxThreads)                         \
      act##_and_mul_##dtype##_##shape(const __grid_constant__ sglk::ActivationParams p) { \
    sglk::activate<sglk::act, type, size, vectors>(p);                                    \
  }

#define SGLK_ACTIVATION(act, dtype, type)                                       \
  SGLK_ACTIVATION_SHAPE(act, dtype, type, vector_1, sglk::kVectorSize<type>, 1) \
  SGLK_ACTIVATION_SHAPE(act, dtype, type, vector_2, sglk::kVectorSize<type>, 2) \
  SGLK_ACTIVATION_SHAPE(act, dtype, type, element_4, 1, 4)

#define SGLK_ACTIVATION_DTYPES(act)      \
  SGLK_ACTIVATION(act, bf16, sglk::bf16) \
  SGLK_ACTIVATION(act, f16, sglk::f16)   \
  SGLK_ACTIVATION(act, f32, float)

SGLK_ACTIVATION_DTYPES(silu)
SGLK_ACTIVATION_DTYPES(gelu)
SGLK_ACTIVATION_DTYPES(gelu_tanh)
