// From a family's fat binary to a kernel on a stream.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>

#include "runtime/driver.h"

namespace sglk {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

struct LaunchConfig {
  Dim3 grid;
  uint32_t block = 0;         // threads, one dimension
  uint32_t shared_bytes = 0;  // dynamic shared memory
  Dim3 cluster;               // blocks
  bool enable_pdl = false;    // programmatic dependent launch: the kernel itself waits for its predecessor
};

// The fat binary of one family, embedded in this library, and its kernels. It is loaded at the first launch,
// a kernel at its own first launch on a device, and both stay: one load serves every device of the process.
class FatBinary {
 public:
  // image: in this library's .nv_fatbin section (CMakeLists.txt places it there).
  // kernel_name: the entry point of kernel 0 … kernel_count − 1, as the family's heuristics number them.
  FatBinary(const char* family, const void* image, int kernel_count, std::string (*kernel_name)(int))
      : family_(family), image_(image), kernel_name_(kernel_name), slots_(new Slot[kernel_count]) {}

  // Launches a kernel with one parameter block, passed by value, on torch's current stream of the device.
  // The caller holds a DeviceGuard. Safe during stream capture, as the first call too.
  template <class Params>
  void launch(int kernel, int32_t device_index, const LaunchConfig& config, const Params& params) {
    static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) <= 4096,
                  "the limit of a kernel's parameters");
    launch_raw(kernel, device_index, config, const_cast<Params*>(&params));
  }

 private:
  struct Slot {
    std::atomic<CUkernel> kernel{nullptr};
    std::atomic<uint64_t> ready_devices{0};  // bit i: loaded on device i, its shared memory limit raised
  };

  CUkernel prepare(int kernel, int32_t device_index);
  void launch_raw(int kernel, int32_t device_index, const LaunchConfig& config, void* params);

  const char* const family_;
  const void* const image_;
  std::string (*const kernel_name_)(int);
  const std::unique_ptr<Slot[]> slots_;
  std::mutex mutex_;  // guards loading, not launching
  CUlibrary library_ = nullptr;
};

}  // namespace sglk
