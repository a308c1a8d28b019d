// Registering ops with torch: SGLK_OP(schema, fn) at the end of a family's file.
#pragma once

#include "runtime/boxing.h"

namespace sglk {

// Defines `schema` in the namespace sgl_kernel and gives it a CUDA implementation. Runs while the library is
// loaded; what torch refuses is raised as a RuntimeError that names the op.
struct OpRegistration {
  OpRegistration(const char* schema, void (*entry)(StableIValue*, uint64_t, uint64_t));
};

}  // namespace sglk

#define SGLK_CONCAT_(a, b) a##b
#define SGLK_CONCAT(a, b) SGLK_CONCAT_(a, b)
#define SGLK_OP(schema, fn) \
  static const ::sglk::OpRegistration SGLK_CONCAT(kRegistration, __COUNTER__)(schema, ::sglk::boxed<fn>)
