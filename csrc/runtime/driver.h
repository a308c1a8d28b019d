// The CUDA driver, found at run time: libcuda.so.1 by dlopen, so that the library loads on machines without
// it.
#pragma once

#include <cuda.h>

#include "runtime/tensor.h"

namespace sglk {

// The driver functions that we call. X(member, symbol): the member has the type of the header's declaration.
#define SGLK_DRIVER_FUNCTIONS(X)                              \
  X(get_error_name, cuGetErrorName)                           \
  X(get_error_string, cuGetErrorString)                       \
  X(device_get, cuDeviceGet)                                  \
  X(device_get_attribute, cuDeviceGetAttribute)               \
  X(primary_context_retain, cuDevicePrimaryCtxRetain)         \
  X(context_get_current, cuCtxGetCurrent)                     \
  X(context_get_device, cuCtxGetDevice)                       \
  X(context_push, cuCtxPushCurrent_v2)                        \
  X(context_pop, cuCtxPopCurrent_v2)                          \
  X(exchange_capture_mode, cuThreadExchangeStreamCaptureMode) \
  X(library_load_data, cuLibraryLoadData)                     \
  X(library_get_kernel, cuLibraryGetKernel)                   \
  X(kernel_get_function, cuKernelGetFunction)                 \
  X(kernel_get_attribute, cuKernelGetAttribute)               \
  X(kernel_set_attribute, cuKernelSetAttribute)               \
  X(launch_kernel, cuLaunchKernelEx)                          \
  X(tensor_map_encode_tiled, cuTensorMapEncodeTiled)

struct Driver {
#define SGLK_MEMBER(member, symbol) decltype(&::symbol) member;
  SGLK_DRIVER_FUNCTIONS(SGLK_MEMBER)
#undef SGLK_MEMBER
};

// Throws Error when there is no driver, or one older than CUDA 12.0 (the first with the library functions).
const Driver& driver();

// "cuLaunchKernelEx: CUDA_ERROR_INVALID_VALUE: invalid argument: <detail>" as an Error unless status is
// success.
void check_cuda(CUresult status, const char* call, const std::string& detail = "");

struct DeviceProperties {
  int compute_capability;  // 10 · major + minor
  int multiprocessors;
  int shared_memory_per_block;  // bytes, the opt-in limit
};

// Read once per device.
const DeviceProperties& device_properties(int32_t index);

// Makes a context of the device current on this thread for the guard's life: torch does so only on threads on
// which it has itself called CUDA.
class DeviceGuard {
 public:
  explicit DeviceGuard(Device device);
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard();

 private:
  bool is_pushed_ = false;
};

// torch's current stream on the device.
CUstream current_stream(int32_t device_index);

}  // namespace sglk
