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

// x / (1 + e^−y). An IEEE division: the approximate one flushes quotients that bf16 can still represent.
__device__ __forceinline__ float gate(float x, float y) { return __fdiv_rn(x, 1.0f + __expf(-y)); }

struct silu {
  static __device__ __forceinline__ float apply(float x) { return gate(x, x); }
};
struct gelu {
  static __device__ __forceinline__ float apply(float x) {
    return 0.5f * x * erfcf(x * -0.70710678118654752f);
  }
};
struct gelu_tanh {
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
  wait_for_predecessor();
  let_successor_start();
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
        out[e] = from_float<T>(Act::apply(to_float(x[v][e])) * to_float(y[v][e]));
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
