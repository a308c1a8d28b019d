// What the kernels use of CUDA's header, on the host.
#pragma once

#include <cmath>

#include "simt.h"

struct __half {
  std::uint16_t bits;
};
struct __half2 {
  __half x, y;
};

inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  const float size = exponent == 31  ? (mantissa == 0 ? INFINITY : NAN)
                     : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                     : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  return x.bits >> 15 ? -size : size;
}
// To nearest, ties to even, as std::nearbyint does by default.
inline __half __float2half_rn(float x) {
  const float size = std::abs(x);
  int bits = 0x7c00;  // infinity
  if (std::isnan(x)) {
    bits = 0x7fff;
  } else if (size < 0x1p-14f) {
    bits = static_cast<int>(std::nearbyint(std::ldexp(size, 24)));
  } else if (size < 65520.0f) {
    const int exponent = std::ilogb(size);
    bits = (exponent + 14) * 1024 + static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  }
  return {static_cast<std::uint16_t>(bits | (std::signbit(x) ? 0x8000 : 0))};
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __low2half2(__half2 x) { return {x.x, x.x}; }
inline __half2 __high2half2(__half2 x) { return {x.y, x.y}; }
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) {
  return __floats2half2_rn(__half2float(a.x) - __half2float(b.x), __half2float(a.y) - __half2float(b.y));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __floats2half2_rn(std::fma(__half2float(a.x), __half2float(b.x), __half2float(c.x)),
                           std::fma(__half2float(a.y), __half2float(b.y), __half2float(c.y)));
}
inline __half2 __hmul2(__half2 a, __half2 b) {
  return __floats2half2_rn(__half2float(a.x) * __half2float(b.x), __half2float(a.y) * __half2float(b.y));
}
