// Masking of logits by a grammar, for fp16, bf16 and fp32, sm_80 and later.
//
//   logits[row, t] = −inf  where bit t % 32 of bitmask[row, t / 32] is 0
//
// Logits are written, never read: a vector whose tokens are all forbidden is one store, one whose tokens are
// all allowed none.
#include <math_constants.h>

#include "common/pdl.cuh"
#include "common/vector.cuh"
#include "grammar.h"

namespace sglk {

constexpr int kThreads = 128;

// The row of this block, or −1.
__device__ __forceinline__ int64_t masked_row(const GrammarParams& p, int64_t slot) {
  if (p.indices == nullptr) return slot;
  const int64_t row = p.is_index_64 ? static_cast<const int64_t*>(p.indices)[slot]
                                    : int64_t{static_cast<const int32_t*>(p.indices)[slot]};
  return row >= 0 && row < p.rows ? row : -1;
}

template <class T, int kSize>
__device__ __forceinline__ void mask(const GrammarParams& p) {
  constexpr uint32_t kAll = (1u << kSize) - 1;
  const unsigned chunk = blockIdx.x % static_cast<unsigned>(p.chunks);
  const int64_t slot = blockIdx.x / static_cast<unsigned>(p.chunks);
  const int64_t token = (int64_t{chunk} * kThreads + threadIdx.x) * kSize;
  wait_for_predecessor();
  let_successor_start();
  const int64_t row = masked_row(p, slot);
  if (row < 0 || token >= p.tokens) return;

  const uint32_t word = p.bitmask[row * p.bitmask_stride + token / 32];
  const int64_t left = p.tokens - token;
  const uint32_t there = left < kSize ? (1u << left) - 1 : kAll;  // bits of tokens that exist
  const uint32_t forbidden = ~(word >> (token % 32)) & there;
  T* const logits = static_cast<T*>(p.logits) + row * p.logits_stride + token;
  const T lowest = from_float<T>(-CUDART_INF_F);
  if (forbidden == kAll) {
    Vector<T, kSize> out;
#pragma unroll
    for (int e = 0; e < kSize; ++e) out[e] = lowest;
    store(logits, out);
  } else if (forbidden != 0) {
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      if (forbidden >> e & 1) logits[e] = lowest;
    }
  }
}

}  // namespace sglk

#define SGLK_GRAMMAR_SHAPE(dtype, type, shape, size)                                         \
  extern "C" __global__ void __launch_bounds__(sglk::kThreads)                               \
      apply_token_bitmask_##dtype##_##shape(const __grid_constant__ sglk::GrammarParams p) { \
    sglk::mask<type, size>(p);                                                               \
  }

#define SGLK_GRAMMAR(dtype, type)                                  \
  SGLK_GRAMMAR_SHAPE(dtype, type, vector, sglk::kVectorSize<type>) \
  SGLK_GRAMMAR_SHAPE(dtype, type, element, 1)

SGLK_GRAMMAR(bf16, sglk::bf16)
SGLK_GRAMMAR(f16, sglk::f16)
SGLK_GRAMMAR(f32, float)
