// Merging of two partial attention outputs, for fp16, bf16 and fp32, sm_80 and later.
//
//   m = max(s_a, s_b),  w = base^(s − m)
//   v = (v_a · w_a + v_b · w_b) / (w_a + w_b),  s = m + log_base(w_a + w_b)
//
//   merge_state     base 2
//   merge_state_v2  base e; a log-sum-exp of +inf counts as −inf
//
// A part whose log-sum-exp is −inf is a sum over nothing: its values, whatever they hold, do not enter. Two
// such parts merge into zeros and −inf. fp32 arithmetic, one rounding.
#include <math_constants.h>

#include "common/pdl.cuh"
#include "common/vector.cuh"
#include "merge.h"

namespace sglk {

constexpr int kMaxThreads = 128;

struct merge_state {
  static __device__ __forceinline__ float clean(float s) { return s; }
  static __device__ __forceinline__ float power(float x) { return exp2f(x); }
  static __device__ __forceinline__ float log(float x) { return log2f(x); }
};
struct merge_state_v2 {
  static __device__ __forceinline__ float clean(float s) { return s == CUDART_INF_F ? -CUDART_INF_F : s; }
  static __device__ __forceinline__ float power(float x) { return expf(x); }
  static __device__ __forceinline__ float log(float x) { return logf(x); }
};

struct Weights {
  float a, b;       // of the values; 0 for a part that does not enter
  float high, sum;  // the merged log-sum-exp is high + log(sum)
};

// A NaN of either part ends in all three: comparisons with it are false, so it is taken for the lower part.
template <class Base>
__device__ __forceinline__ Weights weigh(float s_a, float s_b) {
  s_a = Base::clean(s_a);
  s_b = Base::clean(s_b);
  const bool is_a_higher = s_a > s_b;
  const float high = is_a_higher ? s_a : s_b, low = is_a_higher ? s_b : s_a;
  if (high == -CUDART_INF_F && low == -CUDART_INF_F) return {0.0f, 0.0f, -CUDART_INF_F, 1.0f};
  const float ratio = Base::power(low - high), sum = 1.0f + ratio;
  const float of_high = __fdividef(1.0f, sum), of_low = ratio * of_high;  // sum is 1 to 2: two ulps at most
  return {is_a_higher ? of_high : of_low, is_a_higher ? of_low : of_high, high, sum};
}

template <class Base, class T, int kSize, int kRows, bool kIsStreaming>
__device__ __forceinline__ void merge(const MergeParams& p) {
  const int lanes = 1 << p.lanes_log2;
  const int lane = threadIdx.x & (lanes - 1);
  const int rows_abreast = blockDim.x >> p.lanes_log2;
  const int64_t first = int64_t{blockIdx.x} * rows_abreast * kRows + (threadIdx.x >> p.lanes_log2);
  const T* const v_a = static_cast<const T*>(p.v_a);
  const T* const v_b = static_cast<const T*>(p.v_b);
  T* const v_merged = static_cast<T*>(p.v_merged);
  wait_for_predecessor();
  let_successor_start();

  // Loads are unconditional, of a clamped place, so that all of a thread's are in flight at once.
  Vector<T, kSize> a[kRows], b[kRows];
  int64_t row[kRows];
  const auto load_values = [&](int unit) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      a[r] = load<T, kSize>(v_a + (row[r] * p.units + unit) * kSize);
      b[r] = load<T, kSize>(v_b + (row[r] * p.units + unit) * kSize);
    }
  };
#pragma unroll
  for (int r = 0; r < kRows; ++r) row[r] = min(first + r * rows_abreast, p.rows - 1);
  load_values(min(lane, p.units - 1));
  float s_a[kRows], s_b[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    s_a[r] = p.s_a[row[r]];
    s_b[r] = p.s_b[row[r]];
  }
  Weights weights[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) weights[r] = weigh<Base>(s_a[r], s_b[r]);

  __syncwarp();  // every lane of a row has read what the first may now overwrite
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (lane == 0 && first + r * rows_abreast < p.rows) {
      p.s_merged[row[r]] = weights[r].high + Base::log(weights[r].sum);
    }
  }
  for (int unit = lane; unit < p.units;) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float w_a = weights[r].a, w_b = weights[r].b;
      if (w_a == 0.0f) a[r] = {};  // not 0 · NaN
      if (w_b == 0.0f) b[r] = {};
      Vector<T, kSize> out;
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        out[e] = from_float<T>(to_float(a[r][e]) * w_a + to_float(b[r][e]) * w_b);
      }
      if (first + r * rows_abreast < p.rows) {
        store<kIsStreaming>(v_merged + (row[r] * p.units + unit) * kSize, out);
      }
    }
    unit += lanes;
    if (unit < p.units) load_values(unit);
  }
}

}  // namespace sglk

#define SGLK_MERGE_SHAPE(op, dtype, type, shape, size, rows, is_streaming)  \
  extern "C" __global__ void __launch_bounds__(sglk::kMaxThreads)           \
      op##_##dtype##_##shape(const __grid_constant__ sglk::MergeParams p) { \
    sglk::merge<sglk::op, type, size, rows, is_streaming>(p);               \
  }

#define SGLK_MERGE(op, dtype, type)                                              \
  SGLK_MERGE_SHAPE(op, dtype, type, vector_1, sglk::kVectorSize<type>, 1, false) \
  SGLK_MERGE_SHAPE(op, dtype, type, vector_2, sglk::kVectorSize<type>, 2, false) \
  SGLK_MERGE_SHAPE(op, dtype, type, stream_2, sglk::kVectorSize<type>, 2, true)  \
  SGLK_MERGE_SHAPE(op, dtype, type, element_1, 1, 1, false)

#define SGLK_MERGE_DTYPES(op)      \
  SGLK_MERGE(op, bf16, sglk::bf16) \
  SGLK_MERGE(op, f16, sglk::f16)   \
  SGLK_MERGE(op, f32, float)

SGLK_MERGE_DTYPES(merge_state)
SGLK_MERGE_DTYPES(merge_state_v2)
