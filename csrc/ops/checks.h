// Checks that several ops share. Each throws `op: argument: expected X, got Y`.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "runtime/error.h"
#include "runtime/tensor.h"

namespace sglk {

// An argument with its names, for messages.
struct Argument {
  const char* op;
  const char* name;
  const Tensor& tensor;
};

inline void check_dim(const Argument& a, int64_t dim, const char* meaning) {
  SGLK_CHECK(a.tensor.dim() == dim, "%s: %s: expected %ld-D %s, got %ld-D %s", a.op, a.name, dim, meaning,
             a.tensor.dim(), a.tensor.shape().c_str());
}

inline void check_size(const Argument& a, int64_t d, int64_t expected, const char* reason) {
  SGLK_CHECK(a.tensor.size(d) == expected, "%s: %s.size(%ld): expected %ld (%s), got %ld", a.op, a.name, d,
             expected, reason, a.tensor.size(d));
}

inline void check_dtype(const Argument& a, DType expected, const char* reason) {
  SGLK_CHECK(a.tensor.dtype() == expected, "%s: %s: expected %s (%s), got %s", a.op, a.name, name(expected),
             reason, name(a.tensor.dtype()));
}

inline void check_dtype_in(const Argument& a, std::initializer_list<DType> allowed) {
  std::string names;
  for (DType dtype : allowed) {
    if (a.tensor.dtype() == dtype) return;
    names += (names.empty() ? "" : " or ") + std::string(name(dtype));
  }
  throw Error(format("%s: %s: expected %s, got %s", a.op, a.name, names.c_str(), name(a.tensor.dtype())));
}

inline void check_device(const Argument& a, Device expected, const char* reason) {
  SGLK_CHECK(a.tensor.device() == expected, "%s: %s: expected a tensor on %s (%s), got one on %s", a.op,
             a.name, name(expected).c_str(), reason, name(a.tensor.device()).c_str());
}

// The last dimension is contiguous. A dimension of one element or none has no stride to speak of.
inline void check_last_stride(const Argument& a) {
  SGLK_CHECK(a.tensor.size(-1) <= 1 || a.tensor.stride(-1) == 1, "%s: %s.stride(-1): expected 1, got %ld",
             a.op, a.name, a.tensor.stride(-1));
}

// Row-major without gaps. A dimension of one element has no stride to speak of, an empty tensor none at all.
inline bool is_contiguous(const Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t d = tensor.dim() - 1; d >= 0; --d) {
    if (tensor.size(d) != 1 && tensor.stride(d) != expected) return tensor.numel() == 0;
    expected *= tensor.size(d);
  }
  return true;
}

inline void check_contiguous(const Argument& a) {
  SGLK_CHECK(is_contiguous(a.tensor), "%s: %s: expected a contiguous tensor, got %s with other strides", a.op,
             a.name, a.tensor.shape().c_str());
}

// `pointer` and every stride that follows, in elements of `element_size` bytes, are multiples of `bytes`.
inline bool is_aligned(int bytes, int element_size, const void* pointer,
                       std::initializer_list<int64_t> strides) {
  bool aligned = reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
  for (int64_t stride : strides) aligned = aligned && stride * element_size % bytes == 0;
  return aligned;
}

// A grid has at most 2^31 − 1 blocks in x.
inline uint32_t checked_grid(const char* op, int64_t blocks) {
  SGLK_CHECK(blocks <= INT32_MAX, "%s: input: expected a size that takes at most 2147483647 blocks, got %ld",
             op, blocks);
  return static_cast<uint32_t>(blocks);
}

}  // namespace sglk
