// Integers and float8 of Marlin tiles to pairs of fp16 or bf16, ready as B fragments of mma.m16n8k16.
#pragma once

#include "common/types.cuh"

namespace sglk {

// (x & mask) | bits in one instruction.
__device__ __forceinline__ uint32_t mask_or(uint32_t x, uint32_t mask, uint32_t bits) {
#ifdef __CUDA_ARCH__
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(x), "r"(mask), "r"(bits));
  return r;
#else  // tests/native/simt
  return (x & mask) | bits;
#endif
}

template <class T>
constexpr bool is_bf16 = false;
template <>
constexpr bool is_bf16<bf16> = true;

// Pairs of T in 32 bits.
template <class T>
struct Pair;

template <>
struct Pair<f16> {
  static constexpr int kFloat8Shift = 1;  // from e4m3 in the upper byte to fp16 scaled by 2^−8
  static __device__ __forceinline__ __half2 value(uint32_t x) { return reinterpret_cast<__half2&>(x); }
  static __device__ __forceinline__ uint32_t bits(__half2 x) { return reinterpret_cast<uint32_t&>(x); }
};

template <>
struct Pair<bf16> {
  static constexpr int kFloat8Shift = 4;  // to bf16 scaled by 2^−120
  static __device__ __forceinline__ __nv_bfloat162 value(uint32_t x) {
    return reinterpret_cast<__nv_bfloat162&>(x);
  }
  static __device__ __forceinline__ uint32_t bits(__nv_bfloat162 x) { return reinterpret_cast<uint32_t&>(x); }
};

template <class T>
__device__ __forceinline__ uint32_t subtract(uint32_t x, uint32_t y) {
  return Pair<T>::bits(__hsub2(Pair<T>::value(x), Pair<T>::value(y)));
}
template <class T>
__device__ __forceinline__ uint32_t multiply(uint32_t x, uint32_t y) {
  return Pair<T>::bits(__hmul2(Pair<T>::value(x), Pair<T>::value(y)));
}

template <class T>
__device__ __forceinline__ uint32_t multiply_add(uint32_t x, uint32_t y, uint32_t z) {
  return Pair<T>::bits(__hfma2(Pair<T>::value(x), Pair<T>::value(y), Pair<T>::value(z)));
}

template <class T>
__device__ __forceinline__ float2 to_floats(uint32_t pair);
template <>
__device__ __forceinline__ float2 to_floats<bf16>(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
}
template <>
__device__ __forceinline__ float2 to_floats<f16>(uint32_t pair) {
  return __half22float2(Pair<f16>::value(pair));
}

template <class T>
__device__ __forceinline__ uint32_t from_floats(float low, float high);
template <>
__device__ __forceinline__ uint32_t from_floats<bf16>(float low, float high) {
  return Pair<bf16>::bits(__floats2bfloat162_rn(low, high));
}
template <>
__device__ __forceinline__ uint32_t from_floats<f16>(float low, float high) {
  return Pair<f16>::bits(__floats2half2_rn(low, high));
}

// Half of a pair, twice: as moves, of which nothing is left where an instruction that takes pairs takes it,
// since that can take one half twice.
__device__ __forceinline__ uint32_t twice(uint32_t x, bool is_high) {
  const __half2 pair = Pair<f16>::value(x);  // or whatever lies there
  return Pair<f16>::bits(is_high ? __high2half2(pair) : __low2half2(pair));
}
// Or by a permutation: in marlin_gemm.cu moves took 64 tokens 3 to 9 instructions a unit more.
__device__ __forceinline__ uint32_t twice_low(uint32_t x) { return __byte_perm(x, x, 0x1010); }
__device__ __forceinline__ uint32_t twice_high(uint32_t x) { return __byte_perm(x, x, 0x3232); }

constexpr uint32_t kMagic = 0x64006400;  // a pair of fp16 1024, whose last mantissa bit is 1

// --- integers of 4 bits, less a zero point ---
//
// They are taken as they lie, in nibbles 0 and 4 of a word or in 1 and 5 (is_high): a shift would cost the
// ALU, which has most to do, as much as the mask. All is exact:
//   bf16: what the mask leaves is subnormal (PTX ISA, "fma": such numbers are supported), q · 2^−133 or
//         16 q · 2^−133. The largest powers of two that bf16 has bring it to q / 64, and −z / 64 is added.
//   fp16: 1024 + q, from which 1024 + z is taken, or (1024 + 16 q) / 16, from which 64 + z is.

// What is made of the integer 1.
template <class T>
constexpr float kIntegerUnit = 1.0f;
template <>
constexpr float kIntegerUnit<bf16> = 1.0f / 64;

// A pair of zero points, as it is taken from low and from high nibbles.
struct ZeroOffset {
  uint32_t low, high;
};

// Of the zero points in nibbles 0 and 4, or in 1 and 5 (is_high).
template <class T>
__device__ __forceinline__ ZeroOffset zero_offset(uint32_t x, bool is_high = false) {
  if constexpr (is_bf16<T>) {
    const uint32_t offset = is_high ? multiply<T>(x & 0x00f000f0, 0xfd00fd00)   // · −2^123
                                    : multiply<T>(x & 0x000f000f, 0xff00ff00);  // · −2^127
    return {offset, offset};
  } else {
    const uint32_t low = mask_or(is_high ? x >> 4 : x, 0x000f000f, kMagic);
    return {low, subtract<T>(0x63806380, low)};  // 960 − (1024 + z)
  }
}

template <class T>
__device__ __forceinline__ uint32_t nibbles_less(uint32_t x, bool is_high, const ZeroOffset& offset) {
  if constexpr (is_bf16<T>) {
    return is_high ? multiply_add<T>(x & 0x00f000f0, 0x7d007d00, offset.high)  // · 2^123
                   : multiply_add<T>(x & 0x000f000f, 0x7f007f00, offset.low);  // · 2^127
  } else {
    return is_high ? multiply_add<T>(mask_or(x, 0x00f000f0, kMagic), 0x2c002c00, offset.high)  // / 16
                   : subtract<T>(mask_or(x, 0x000f000f, kMagic), offset.low);
  }
}

// --- the same as they are, for bf16 ---
//
// What the mask leaves is a factor itself: tensor cores take subnormal numbers (V100, T4, A100: Fasi et al.,
// Numerical behavior of NVIDIA tensor cores, 2021; H200: our tests). The tokens that it is multiplied with
// are scaled instead, which are fewer, and the zero points, times the sum of a group's tokens (as they are),
// are subtracted from its sums.

constexpr float kRawUnit = 1.0f / (1ul << 32) / (1ul << 33);  // 2^−65: what is made of 1 · 1
constexpr uint32_t kRawScale[] = {0x61806180, 0x5f805f80};    // 2^68, 2^64: for low nibbles, for high ones
constexpr uint32_t kOnes = 0x3f803f80;                        // to add up tokens

__device__ __forceinline__ uint32_t raw_nibbles(uint32_t x, bool is_high) {
  return x & (is_high ? 0x00f000f0u : 0x000f000fu);
}
// The zero points in nibbles 0 and 4, times kRawUnit.
__device__ __forceinline__ float2 raw_zeros(uint32_t x) {
  return to_floats<bf16>(multiply<bf16>(x & 0x000f000f, 0x61806180));
}

// q − 128 of the bytes 0 and 2 (first) or 1 and 3 of a word. bf16 cannot hold 128 + 255: through fp32, where
// 2^23 + q is exact; q − 128 has at most 8 significant bits, so its upper half is all of it.
template <class T, bool kIsFirst>
__device__ __forceinline__ uint32_t centred_bytes(uint32_t x) {
  if constexpr (!is_bf16<T>) {
    return subtract<T>(mask_or(kIsFirst ? x : x >> 8, 0x00ff00ff, kMagic), 0x64806480);
  } else {
    const float low = __uint_as_float(__byte_perm(x, 0x4b000000, kIsFirst ? 0x7650 : 0x7651)) - 8388736.0f;
    const float high = __uint_as_float(__byte_perm(x, 0x4b000000, kIsFirst ? 0x7652 : 0x7653)) - 8388736.0f;
    return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
  }
}

// e4m3 of the bytes 0 and 2 (first) or 1 and 3: sign, exponent and mantissa moved to their places in T, which
// scales by a power of two that the caller's scales undo. Subnormals stay right; NaN becomes ±480.
template <class T, bool kIsFirst>
__device__ __forceinline__ uint32_t float8_bytes(uint32_t x) {
  if constexpr (kIsFirst) x <<= 8;
  return ((x & 0x7f007f00) >> Pair<T>::kFloat8Shift) | (x & 0x80008000);
}

}  // namespace sglk
