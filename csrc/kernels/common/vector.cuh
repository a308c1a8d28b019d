// Aligned groups of elements, moved by one memory instruction each.
#pragma once

#include "common/types.cuh"

namespace sglk {

// kSize elements, aligned to their total size (2, 4, 8 or 16 bytes).
template <class T, int kSize>
struct alignas(sizeof(T) * kSize) Vector {
  T data[kSize];
  __device__ __forceinline__ T& operator[](int i) { return data[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return data[i]; }
};

// Elements of T in 16 bytes, the widest access that every architecture has.
template <class T>
constexpr int kVectorSize = 16 / sizeof(T);

// Makes the compiler take the 16 bytes for four words that it knows nothing about. Without it, it splits a
// loaded vector into elements at once, which waits for the load, or keeps fp32 copies, which take twice the
// registers.
template <class T, int kSize>
__device__ __forceinline__ void keep_packed(Vector<T, kSize>& value) {
  if constexpr (sizeof(value) == 16) {
    uint4& bits = reinterpret_cast<uint4&>(value);
    asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
  }
}

template <class T, int kSize>
__device__ __forceinline__ Vector<T, kSize> load(const T* pointer) {
  Vector<T, kSize> value = *reinterpret_cast<const Vector<T, kSize>*>(pointer);
  keep_packed(value);
  return value;
}

// kIsStreaming: evict-first, for outputs larger than the L2. Of a smaller one it would cost the reader its
// hits.
template <bool kIsStreaming = false, class T, int kSize>
__device__ __forceinline__ void store(T* pointer, const Vector<T, kSize>& value) {
  if constexpr (kIsStreaming && sizeof(value) == 16) {
    __stcs(reinterpret_cast<uint4*>(pointer), reinterpret_cast<const uint4&>(value));
  } else {
    *reinterpret_cast<Vector<T, kSize>*>(pointer) = value;
  }
}

}  // namespace sglk
