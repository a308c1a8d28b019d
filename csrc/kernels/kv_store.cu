// Stores of keys and values into the rows of their caches, sm_80 and later.
//
//   store_kv_cache  k_cache[loc] = k, v_cache[loc] = v: a copy of bytes
//   downcast_fp8    k_cache[loc · mult + offset] = float8_e4m3fn(k / scale), of fp16 and bf16, saturating at
//                   ±448; NaN stays NaN. v likewise
//
// Rows outside a cache are skipped.
#include <cuda_fp8.h>

#include "common/pdl.cuh"
#include "common/vector.cuh"
#include "kv_store.h"

namespace sglk {

constexpr int kMaxThreads = 128;

using byte = unsigned char;

struct Place {
  int64_t token;
  int64_t row;  // of the caches
  int lane, lanes;
};

// The token of this thread; false where there is none.
__device__ __forceinline__ bool find_place(const KvStoreParams& p, Place& place) {
  place.lanes = 1 << p.lanes_log2;
  place.lane = threadIdx.x & (place.lanes - 1);
  place.token = int64_t{blockIdx.x} * (blockDim.x >> p.lanes_log2) + (threadIdx.x >> p.lanes_log2);
  wait_for_predecessor();
  let_successor_start();
  if (place.token >= p.tokens) return false;
  const int64_t loc = p.is_loc_64 ? static_cast<const int64_t*>(p.loc)[place.token]
                                  : int64_t{static_cast<const int32_t*>(p.loc)[place.token]};
  place.row = loc * p.mult + p.offset;
  return true;
}

template <int kBytes>
__device__ __forceinline__ void store_kv_cache(const KvStoreParams& p) {
  Place at;
  if (!find_place(p, at)) return;
  const byte* const k = static_cast<const byte*>(p.k) + at.token * p.k_stride;
  const byte* const v = static_cast<const byte*>(p.v) + at.token * p.v_stride;
  const int k_units = at.row >= 0 && at.row < p.k_slots ? p.k_units : 0;
  const int v_units = at.row >= 0 && at.row < p.v_slots ? p.v_units : 0;
  byte* const k_cache = static_cast<byte*>(p.k_cache) + at.row * p.k_cache_stride;
  byte* const v_cache = static_cast<byte*>(p.v_cache) + at.row * p.v_cache_stride;
  const int units = max(k_units, v_units);
  for (int unit = at.lane; unit < units; unit += at.lanes) {
    Vector<byte, kBytes> key, value;
    if (unit < k_units) key = load<byte, kBytes>(k + int64_t{unit} * kBytes);
    if (unit < v_units) value = load<byte, kBytes>(v + int64_t{unit} * kBytes);
    if (unit < k_units) store(k_cache + int64_t{unit} * kBytes, key);
    if (unit < v_units) store(v_cache + int64_t{unit} * kBytes, value);
  }
}

template <class T, int kSize>
__device__ __forceinline__ Vector<byte, kSize> downcast(const Vector<T, kSize>& in, float scale) {
  Vector<byte, kSize> out;
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    out[e] = __nv_cvt_float_to_fp8(__fdiv_rn(to_float(in[e]), scale), __NV_SATFINITE, __NV_E4M3);
  }
  return out;
}

template <class T, int kSize>
__device__ __forceinline__ void downcast_fp8(const KvStoreParams& p) {
  Place at;
  if (!find_place(p, at)) return;
  const T* const k = static_cast<const T*>(p.k) + at.token * p.k_stride;
  const T* const v = static_cast<const T*>(p.v) + at.token * p.v_stride;
  const float k_scale = *p.k_scale, v_scale = *p.v_scale;
  const int k_units = at.row >= 0 && at.row < p.k_slots ? p.k_units : 0;
  const int v_units = at.row >= 0 && at.row < p.v_slots ? p.v_units : 0;
  byte* const k_cache = static_cast<byte*>(p.k_cache) + at.row * p.k_cache_stride;
  byte* const v_cache = static_cast<byte*>(p.v_cache) + at.row * p.v_cache_stride;
  const int units = max(k_units, v_units);
  for (int unit = at.lane; unit < units; unit += at.lanes) {
    Vector<T, kSize> key, value;
    if (unit < k_units) key = load<T, kSize>(k + int64_t{unit} * kSize);
    if (unit < v_units) value = load<T, kSize>(v + int64_t{unit} * kSize);
    if (unit < k_units) store(k_cache + int64_t{unit} * kSize, downcast(key, k_scale));
    if (unit < v_units) store(v_cache + int64_t{unit} * kSize, downcast(value, v_scale));
  }
}

}  // namespace sglk

#define SGLK_STORE(shape, bytes)                                              \
  extern "C" __global__ void __launch_bounds__(sglk::kMaxThreads)             \
      store_kv_cache_##shape(const __grid_constant__ sglk::KvStoreParams p) { \
    sglk::store_kv_cache<bytes>(p);                                           \
  }

#define SGLK_DOWNCAST(dtype, shape, size)                                             \
  extern "C" __global__ void __launch_bounds__(sglk::kMaxThreads)                     \
      downcast_fp8_##dtype##_##shape(const __grid_constant__ sglk::KvStoreParams p) { \
    sglk::downcast_fp8<sglk::dtype, size>(p);                                         \
  }

SGLK_STORE(vector, 16)
SGLK_STORE(element, 1)
SGLK_DOWNCAST(bf16, vector, 8)
SGLK_DOWNCAST(bf16, element, 1)
SGLK_DOWNCAST(f16, vector, 8)
SGLK_DOWNCAST(f16, element, 1)
