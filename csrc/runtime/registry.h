// Registering ops with torch: SGLK_OP(schema, fn) at the end of a family's file.
#pragma once

#include "runtime/boxing.h"

namespace sglk {

// Defines `schema` in the namespace sgl_kernel and gives it a CUDA implementation. Runs while the library is
// loaded, where an exception would end the process: nothing between here and Python's ctypes could catch it.
// The first op that torch refuses is therefore kept for sglk_load_error().
struct OpRegistration {
  OpRegistration(const char* schema, void (*entry)(StableIValue*, uint64_t, uint64_t));
};

}  // namespace sglk

// Why an op is not registered, or null when all are; valid for the life of the process. Whoever loads the
// library asks this first.
extern "C" __attribute__((visibility("default"))) const char* sglk_load_error();

#define SGLK_CONCAT_(a, b) a##b
#define SGLK_CONCAT(a, b) SGLK_CONCAT_(a, b)
#define SGLK_OP(schema, fn) \
  static const ::sglk::OpRegistration SGLK_CONCAT(kRegistration, __COUNTER__)(schema, ::sglk::boxed<fn>)
