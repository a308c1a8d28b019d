#include "runtime/launch.h"

namespace sglk {
namespace {

// Loading code is forbidden to a thread that captures a stream in the strict modes, although it does not
// touch the stream: relax the mode meanwhile.
class RelaxedCapture {
 public:
  RelaxedCapture() { driver().exchange_capture_mode(&mode_); }
  ~RelaxedCapture() { driver().exchange_capture_mode(&mode_); }

 private:
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

}  // namespace

CUkernel FatBinary::prepare(int kernel, int32_t device_index) {
  const std::lock_guard lock(mutex_);
  const RelaxedCapture relaxed;
  const std::string name = kernel_name_(kernel);
  const DeviceProperties& properties = device_properties(device_index);
  const std::string where = format("%s, %s, compute capability %d.%d", family_, name.c_str(),
                                   properties.compute_capability / 10, properties.compute_capability % 10);
  if (library_ == nullptr) {
    check_cuda(driver().library_load_data(&library_, image_, nullptr, nullptr, 0, nullptr, nullptr, 0),
               "cuLibraryLoadData", where);
  }
  Slot& slot = slots_[kernel];
  CUkernel handle = slot.kernel.load(std::memory_order_relaxed);
  if (handle == nullptr) {
    check_cuda(driver().library_get_kernel(&handle, library_, name.c_str()), "cuLibraryGetKernel", where);
  }
  CUdevice device;
  check_cuda(driver().device_get(&device, device_index), "cuDeviceGet");
  CUfunction function;  // asking for it loads the kernel now instead of inside a capture
  check_cuda(driver().kernel_get_function(&function, handle), "cuKernelGetFunction", where);
  int static_shared = 0;
  check_cuda(
      driver().kernel_get_attribute(&static_shared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, handle, device),
      "cuKernelGetAttribute", where);
  check_cuda(
      driver().kernel_set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                    properties.shared_memory_per_block - static_shared, handle, device),
      "cuKernelSetAttribute", where);
  slot.kernel.store(handle, std::memory_order_relaxed);
  slot.ready_devices.fetch_or(uint64_t{1} << device_index, std::memory_order_release);
  return handle;
}

void FatBinary::launch_raw(int kernel, int32_t device_index, const LaunchConfig& config, void* params) {
  Slot& slot = slots_[kernel];
  const bool is_ready = slot.ready_devices.load(std::memory_order_acquire) >> device_index & 1;
  const CUkernel handle =
      is_ready ? slot.kernel.load(std::memory_order_relaxed) : prepare(kernel, device_index);

  CUlaunchAttribute attributes[2];
  unsigned count = 0;
  if (config.enable_pdl && device_properties(device_index).compute_capability >= 90) {
    attributes[count].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attributes[count++].value.programmaticStreamSerializationAllowed = 1;
  }
  if (config.cluster.x * config.cluster.y * config.cluster.z > 1) {
    attributes[count].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attributes[count++].value.clusterDim = {config.cluster.x, config.cluster.y, config.cluster.z};
  }
  CUlaunchConfig launch{};
  launch.gridDimX = config.grid.x;
  launch.gridDimY = config.grid.y;
  launch.gridDimZ = config.grid.z;
  launch.blockDimX = config.block;
  launch.blockDimY = launch.blockDimZ = 1;
  launch.sharedMemBytes = config.shared_bytes;
  launch.hStream = current_stream(device_index);
  launch.attrs = attributes;
  launch.numAttrs = count;
  void* arguments[] = {params};
  const CUresult status =
      driver().launch_kernel(&launch, reinterpret_cast<CUfunction>(handle), arguments, nullptr);
  if (__builtin_expect(status != CUDA_SUCCESS, 0)) {
    check_cuda(
        status, "cuLaunchKernelEx",
        format("%s, grid %u x %u x %u, block %u, %u bytes of shared memory", kernel_name_(kernel).c_str(),
               config.grid.x, config.grid.y, config.grid.z, config.block, config.shared_bytes));
  }
}

}  // namespace sglk
