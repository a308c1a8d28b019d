// Checks of packed weights, which several families share.
#pragma once

#include <climits>

#include "ops/checks.h"

namespace sglk {

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
