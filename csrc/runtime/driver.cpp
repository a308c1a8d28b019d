#include "runtime/driver.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>
#include <string>

namespace sglk {
namespace {

constexpr int kMaxDevices = 64;  // torch's own limit

Driver load_driver() {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  SGLK_CHECK(library != nullptr, "CUDA driver: expected libcuda.so.1, got: %s\nInstall the NVIDIA driver.",
             dlerror());
  Driver functions;
#define SGLK_LOOK_UP(member, symbol)                                                            \
  functions.member = reinterpret_cast<decltype(functions.member)>(dlsym(library, #symbol));     \
  SGLK_CHECK(functions.member != nullptr,                                                       \
             "CUDA driver: %s: expected a driver for CUDA 12.0 or later, got one without this " \
             "function\nUpdate the NVIDIA driver (525 or later).",                              \
             #symbol);
  SGLK_DRIVER_FUNCTIONS(SGLK_LOOK_UP)
#undef SGLK_LOOK_UP
  return functions;
}

GetCurrentCudaStream load_stream_getter() {
  void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  SGLK_CHECK(library != nullptr, "torch: expected a CUDA build of torch, got one without libtorch_cuda.so");
  auto getter = reinterpret_cast<GetCurrentCudaStream>(dlsym(library, kGetCurrentCudaStream));
  SGLK_CHECK(getter != nullptr, "torch: expected %s in libtorch_cuda.so, which torch 2.7.0 and later export",
             kGetCurrentCudaStream);
  return getter;
}

int attribute(CUdevice device, CUdevice_attribute which) {
  int value = 0;
  check_cuda(driver().device_get_attribute(&value, which, device), "cuDeviceGetAttribute");
  return value;
}

int checked(int32_t device_index) {
  SGLK_CHECK(device_index >= 0 && device_index < kMaxDevices, "device: expected an index below %d, got %d",
             kMaxDevices, device_index);
  return device_index;
}

CUcontext primary_context(int32_t device_index) {
  static std::atomic<CUcontext> contexts[kMaxDevices];
  std::atomic<CUcontext>& slot = contexts[checked(device_index)];
  if (CUcontext known = slot.load(std::memory_order_acquire)) return known;
  CUdevice device;
  check_cuda(driver().device_get(&device, device_index), "cuDeviceGet");
  CUcontext context = nullptr;
  // Never released: torch holds the primary context for the life of the process as well.
  check_cuda(driver().primary_context_retain(&context, device), "cuDevicePrimaryCtxRetain");
  slot.store(context, std::memory_order_release);
  return context;
}

}  // namespace

const Driver& driver() {
  static const Driver functions = load_driver();
  return functions;
}

void check_cuda(CUresult status, const char* call, const std::string& detail) {
  if (__builtin_expect(status == CUDA_SUCCESS, 1)) return;
  const char *error = nullptr, *text = nullptr;
  driver().get_error_name(status, &error);
  driver().get_error_string(status, &text);
  throw Error(format("%s: %s: %s%s%s", call, error ? error : "unknown error", text ? text : "",
                     detail.empty() ? "" : ": ", detail.c_str()));
}

const DeviceProperties& device_properties(int32_t index) {
  // A mutex and a flag instead of std::call_once, whose pthread_once ties the library to glibc 2.34.
  static DeviceProperties table[kMaxDevices];
  static std::atomic<bool> is_known[kMaxDevices];
  static std::mutex mutex;
  if (!is_known[checked(index)].load(std::memory_order_acquire)) {
    const std::lock_guard lock(mutex);
    CUdevice device;
    check_cuda(driver().device_get(&device, index), "cuDeviceGet");
    table[index] = {10 * attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
                        attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
                    attribute(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
                    attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)};
    is_known[index].store(true, std::memory_order_release);
  }
  return table[index];
}

DeviceGuard::DeviceGuard(Device device) {
  CUcontext current = nullptr;
  check_cuda(driver().context_get_current(&current), "cuCtxGetCurrent");
  if (current != nullptr) {
    CUdevice current_device, wanted;
    check_cuda(driver().context_get_device(&current_device), "cuCtxGetDevice");
    check_cuda(driver().device_get(&wanted, device.index), "cuDeviceGet");
    if (current_device == wanted) return;
  }
  check_cuda(driver().context_push(primary_context(device.index)), "cuCtxPushCurrent");
  is_pushed_ = true;
}

DeviceGuard::~DeviceGuard() {
  CUcontext popped;
  if (is_pushed_) driver().context_pop(&popped);
}

CUstream current_stream(int32_t device_index) {
  static const GetCurrentCudaStream getter = load_stream_getter();
  void* stream = nullptr;
  SGLK_CHECK(getter(device_index, &stream) == 0, "torch: %s: failed for device %d", kGetCurrentCudaStream,
             device_index);
  return static_cast<CUstream>(stream);
}

}  // namespace sglk
