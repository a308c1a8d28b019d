// Rotary position embedding of queries and keys, for fp16 and bf16, sm_80 and later.
//
//   (x1, x2) → (x1·cos − x2·sin, x2·cos + x1·sin)   per pair i < rotary_dim / 2, cos and sin of the token's
//   position neox: pair i = elements (i, i + rotary_dim / 2);  interleaved: elements (2i, 2i + 1)
//
// fp32 arithmetic, one rounding. Optionally the rotated keys, with their unrotated tail, and the values are
// also written to the rows of a KV cache.
//
// One block takes heads_per_block heads of one token. `lanes` threads share a head, each with kPairs pairs,
// and keep their cosines and sines in registers while they walk the heads kUnroll at a time. The first heads
// are loaded between the position and the angles, whose address it gives:
//
//   thread t: lane = t % lanes → pairs [lane · kPairs, (lane + 1) · kPairs)
//             heads t / lanes, t / lanes + step, …   with step = blockDim.x / lanes
#include "common/pdl.cuh"
#include "common/vector.cuh"
#include "rope.h"

namespace sglk {

constexpr int kMaxThreads = 512;

template <class T>
__device__ __forceinline__ T* head(const RopeHeads& heads, int64_t token, int index) {
  return static_cast<T*>(heads.data) + token * heads.token_stride + index * heads.head_stride;
}

// Head `index` of queries and keys counted through. Selects instead of a branch, which would part the loads.
template <class T>
__device__ __forceinline__ T* head(const RopeHeads& q, const RopeHeads& k, int q_heads, int64_t token,
                                   int index) {
  const bool is_query = index < q_heads;
  T* const data = static_cast<T*>(is_query ? q.data : k.data);
  const int64_t token_stride = is_query ? q.token_stride : k.token_stride;
  const int64_t head_stride = is_query ? q.head_stride : k.head_stride;
  return data + token * token_stride + (is_query ? index : index - q_heads) * head_stride;
}

// kPairs pairs of one head: two vectors, either half a rotary_dim apart or adjacent.
template <class T, int kPairs, bool kInterleaved, bool kIsStreaming>
struct Pairs {
  Vector<T, kPairs> first, second;

  static __device__ __forceinline__ int offset(int lane) { return lane * kPairs * (kInterleaved ? 2 : 1); }
  static __device__ __forceinline__ int distance(int rotary_dim) {
    return kInterleaved ? kPairs : rotary_dim / 2;
  }

  __device__ __forceinline__ void load_from(const T* head, int lane, int rotary_dim) {
    first = load<T, kPairs>(head + offset(lane));
    second = load<T, kPairs>(head + offset(lane) + distance(rotary_dim));
  }
  __device__ __forceinline__ void store_to(T* head, int lane, int rotary_dim) const {
    store<kIsStreaming>(head + offset(lane), first);
    store<kIsStreaming>(head + offset(lane) + distance(rotary_dim), second);
  }
  // Pair i as two elements of the two vectors.
  __device__ __forceinline__ T& x1(int i) {
    return kInterleaved ? (2 * i < kPairs ? first[2 * i] : second[2 * i - kPairs]) : first[i];
  }
  __device__ __forceinline__ T& x2(int i) {
    return kInterleaved ? (2 * i + 1 < kPairs ? first[2 * i + 1] : second[2 * i + 1 - kPairs]) : second[i];
  }
  __device__ __forceinline__ void rotate(const float* cosine, const float* sine) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float a = to_float(x1(i)), b = to_float(x2(i));
      x1(i) = from_float<T>(a * cosine[i] - b * sine[i]);
      x2(i) = from_float<T>(b * cosine[i] + a * sine[i]);
    }
  }
};

template <int kPairs>
__device__ __forceinline__ void load_angles(float* values, const float* pointer) {
  constexpr int kSize = kPairs < 4 ? kPairs : 4;
#pragma unroll
  for (int i = 0; i < kPairs; i += kSize) {
    const Vector<float, kSize> part = load<float, kSize>(pointer + i);
#pragma unroll
    for (int j = 0; j < kSize; ++j) values[i + j] = part[j];
  }
}

// All threads of the block copy elements [begin, end) of heads first … first + count − 1, kSize at a time.
template <class T, int kSize>
__device__ __forceinline__ void copy_heads(const RopeHeads& source, int64_t source_token,
                                           const RopeHeads& target, int64_t target_token, int first,
                                           int count, int begin, int end) {
  const int width = (end - begin) / kSize;
  for (int i = threadIdx.x; i < count * width; i += blockDim.x) {
    const int index = first + i / width, element = begin + i % width * kSize;
    store(head<T>(target, target_token, index) + element,
          load<T, kSize>(head<T>(source, source_token, index) + element));
  }
}

template <class T, int kPairs, bool kInterleaved, int kUnroll>
__device__ __forceinline__ void rotate_token(const RopeParams& p) {
  const int64_t token = blockIdx.x;
  const int lane = threadIdx.x % p.lanes, step = blockDim.x / p.lanes;
  const int first_head = blockIdx.y * p.heads_per_block;
  const int last_head = min(first_head + p.heads_per_block, p.q_heads + p.k_heads);
  let_successor_start();
  wait_for_predecessor();

  const int64_t position = p.is_position_64 ? static_cast<const int64_t*>(p.position)[token]
                                            : static_cast<const int32_t*>(p.position)[token];
  const int64_t slot = p.cache_slot != nullptr ? p.cache_slot[token] : -1;
  const bool is_cached = slot >= 0 && slot < p.cache_slots;

  // Several heads a thread is the shape for many tokens: 2 % faster on an H200 (2026-11-23) with streaming
  // stores.
  using Group = Pairs<T, kPairs, kInterleaved, (kUnroll > 1)>;
  int base = first_head + threadIdx.x / p.lanes;
  // Loads without a branch: a thread past the last head reads that one again and stores nothing.
  const auto load_groups = [&](Group* group) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int h = min(base + u * step, last_head - 1);
      group[u].load_from(head<T>(p.q_in, p.k_in, p.q_heads, token, h), lane, p.rotary_dim);
    }
  };
  // The last blockDim.x % lanes threads have no head of their own.
  if (threadIdx.x / p.lanes < step && base < last_head) {
    Group groups[kUnroll];
    load_groups(groups);

    float cosine[kPairs], sine[kPairs];
    if (position >= 0 && position < p.max_position) {
      const float* const row = p.cos_sin + position * p.rotary_dim + lane * kPairs;
      load_angles<kPairs>(cosine, row);
      load_angles<kPairs>(sine, row + p.rotary_dim / 2);
    } else {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) cosine[i] = sine[i] = __int_as_float(0x7fc00000);
    }

    const auto finish_groups = [&](Group* group) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int h = base + u * step;
        if (h < last_head) {
          group[u].rotate(cosine, sine);
          group[u].store_to(head<T>(p.q_out, p.k_out, p.q_heads, token, h), lane, p.rotary_dim);
          if (is_cached && h >= p.q_heads) {
            group[u].store_to(head<T>(p.k_cache, slot, h - p.q_heads), lane, p.rotary_dim);
          }
        }
      }
    };
    finish_groups(groups);
    for (base += step * kUnroll; base < last_head; base += step * kUnroll) {
      Group more[kUnroll];
      load_groups(more);
      finish_groups(more);
    }
  }

  const int k_begin = max(first_head - p.q_heads, 0), k_count = max(last_head - p.q_heads - k_begin, 0);
  if (!p.is_in_place && p.rotary_dim < p.head_size) {
    copy_heads<T, kPairs>(p.q_in, token, p.q_out, token, first_head,
                          max(min(last_head, p.q_heads) - first_head, 0), p.rotary_dim, p.head_size);
    copy_heads<T, kPairs>(p.k_in, token, p.k_out, token, k_begin, k_count, p.rotary_dim, p.head_size);
  }
  if (is_cached) {
    copy_heads<T, kPairs>(p.k_in, token, p.k_cache, slot, k_begin, k_count, p.rotary_dim, p.head_size);
    copy_heads<T, kPairs>(p.v_in, token, p.v_cache, slot, k_begin, k_count, 0, p.head_size);
  }
}

}  // namespace sglk

#define SGLK_ROPE_SHAPE(style, interleaved, dtype, shape, pairs, unroll)             \
  extern "C" __global__ void __launch_bounds__(sglk::kMaxThreads)                    \
      rope_##style##_##dtype##_##shape(const __grid_constant__ sglk::RopeParams p) { \
    sglk::rotate_token<sglk::dtype, pairs, interleaved, unroll>(p);                  \
  }

#define SGLK_ROPE(style, interleaved, dtype)                 \
  SGLK_ROPE_SHAPE(style, interleaved, dtype, vector_1, 8, 1) \
  SGLK_ROPE_SHAPE(style, interleaved, dtype, vector_3, 8, 3) \
  SGLK_ROPE_SHAPE(style, interleaved, dtype, element_1, 1, 1)

SGLK_ROPE(neox, false, bf16)
SGLK_ROPE(neox, false, f16)
SGLK_ROPE(interleaved, true, bf16)
SGLK_ROPE(interleaved, true, f16)
