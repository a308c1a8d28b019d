// Checks of packed weights, which several families share.
#pragma once

#include <climits>

#include "ops/checks.h"

namespace sglk {

inline void check_contiguous(const Argument& a) {
  int64_t expected = 1;
  for (int64_t d = a.tensor.dim() - 1; d >= 0; --d) {
    SGLK_CHECK(a.tensor.numel() == 0 || a.tensor.size(d) == 1 || a.tensor.stride(d) == expected,
               "%s: %s: expected a contiguous tensor, got stride %ld of dimension %ld", a.op, a.name,
               a.tensor.stride(d), d);
    expected *= a.tensor.size(d);
  }
}

// A contiguous tensor of that dtype on that device.
inline void check_dense(const Argument& a, DType dtype, const char* dtype_reason, Device device,
                        const char* device_reason) {
  check_dtype(a, dtype, dtype_reason);
  check_device(a, device, device_reason);
  check_contiguous(a);
}

inline void check_multiple(const char* op, const char* name, int64_t value, int64_t divisor) {
  SGLK_CHECK(value >= 0 && value % divisor == 0, "%s: %s: expected a multiple of %ld, got %ld", op, name,
             divisor, value);
}

inline void check_int(const char* op, const char* name, int64_t value) {
  SGLK_CHECK(value <= INT_MAX, "%s: %s: expected less than 2147483648, got %ld", op, name, value);
}

}  // namespace sglk
