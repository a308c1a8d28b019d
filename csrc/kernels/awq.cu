// AWQ weights of 4 bits as fp16 or bf16, for sm_80 and later.
//
//   output[k, n] = (q[k, n] − z[k / group_size, n]) · scales[k / group_size, n]
//
// The difference is exact, the product is rounded once. Field t of a word (bits 4t … 4t+3) is column
// 0 2 4 6 1 3 5 7: fields t and t + 4 are neighbours, and one mask takes both. A thread owns one word of
// kRows rows of one group: it unpacks their scales and zeros once, and writes 16 bytes a row.
#include "awq.h"
#include "common/pdl.cuh"
#include "common/vector.cuh"

namespace sglk {

constexpr int kAwqThreads = 128;

// Two integers below 16 in bits 0 … 3 and 16 … 19 as floating-point numbers, offset by a power of two whose
// ulp is 1.
template <class T>
struct Pair;

template <>
struct Pair<f16> {
  using type = __half2;
  static constexpr uint32_t kOffset = 0x64006400;  // 1024
};
template <>
struct Pair<bf16> {
  using type = __nv_bfloat162;
  static constexpr uint32_t kOffset = 0x43004300;  // 128
};

template <class T>
__device__ __forceinline__ typename Pair<T>::type unpack(uint32_t word, int t) {
  const uint32_t bits = ((word >> (4 * t)) & 0x000f000fu) | Pair<T>::kOffset;
  return reinterpret_cast<const typename Pair<T>::type&>(bits);
}

template <class T, int kRows, bool kIsStreaming>
__device__ __forceinline__ void awq_dequantize_rows(const AwqParams& p) {
  const int64_t first = int64_t{blockIdx.x / static_cast<unsigned>(p.chunks)} * kRows;
  const int column = blockIdx.x % static_cast<unsigned>(p.chunks) * kAwqThreads + threadIdx.x;
  const int64_t group = static_cast<unsigned>(first) / static_cast<unsigned>(p.group_size);
  wait_for_predecessor();
  let_successor_start();
  if (column >= p.words) return;

  uint32_t word[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) word[r] = p.qweight[(first + r) * p.words + column];
  const uint32_t zeros = p.qzeros[group * p.words + column];
  const Vector<T, 8> scales = load<T, 8>(static_cast<const T*>(p.scales) + (group * p.words + column) * 8);

  typename Pair<T>::type zero[4], scale[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    zero[t] = unpack<T>(zeros, t);
    scale[t] = reinterpret_cast<const typename Pair<T>::type*>(&scales)[t];
  }
  T* const output = static_cast<T*>(p.output) + (first * p.words + column) * 8;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    Vector<T, 8> out;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      reinterpret_cast<typename Pair<T>::type*>(&out)[t] =
          __hmul2(__hsub2(unpack<T>(word[r], t), zero[t]), scale[t]);
    }
    store<kIsStreaming>(output + int64_t{r} * p.words * 8, out);
  }
}

// Any group size, any alignment: a word a thread, single elements.
template <class T>
__device__ __forceinline__ void awq_dequantize_any(const AwqParams& p) {
  const int64_t row = blockIdx.x / static_cast<unsigned>(p.chunks);
  const int column = blockIdx.x % static_cast<unsigned>(p.chunks) * kAwqThreads + threadIdx.x;
  const int64_t group = row / p.group_size;
  wait_for_predecessor();
  let_successor_start();
  if (column >= p.words) return;

  const uint32_t word = p.qweight[row * p.words + column], zeros = p.qzeros[group * p.words + column];
  const T* const scales = static_cast<const T*>(p.scales) + (group * p.words + column) * 8;
  T* const output = static_cast<T*>(p.output) + (row * p.words + column) * 8;
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const typename Pair<T>::type difference = __hsub2(unpack<T>(word, t), unpack<T>(zeros, t));
    output[2 * t] = __hmul(difference.x, scales[2 * t]);
    output[2 * t + 1] = __hmul(difference.y, scales[2 * t + 1]);
  }
}

}  // namespace sglk

#define SGLK_AWQ(dtype, shape, function)                                            \
  extern "C" __global__ void __launch_bounds__(sglk::kAwqThreads)                   \
      awq_dequantize_##dtype##_##shape(const __grid_constant__ sglk::AwqParams p) { \
    function(p);                                                                    \
  }

#define SGLK_AWQ_DTYPE(dtype)                                                          \
  SGLK_AWQ(dtype, rows_4, (sglk::awq_dequantize_rows<sglk::dtype, 4, false>))          \
  SGLK_AWQ(dtype, rows_8, (sglk::awq_dequantize_rows<sglk::dtype, 8, false>))          \
  SGLK_AWQ(dtype, rows_8_streaming, (sglk::awq_dequantize_rows<sglk::dtype, 8, true>)) \
  SGLK_AWQ(dtype, any, (sglk::awq_dequantize_any<sglk::dtype>))

SGLK_AWQ_DTYPE(f16)
SGLK_AWQ_DTYPE(bf16)
