#include "fake_driver.h"

#include <cuda.h>

#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "fake_torch.h"

// The fat binaries of the library, X(family): the build defines SGLK_FAMILIES from csrc/ops.
#define X(family) extern "C" const unsigned char sglk_fatbin_##family[16] = {};
SGLK_FAMILIES
#undef X

struct CUctx_st {
  int device;
};
struct CUlib_st {
  std::string family;
};
struct CUkern_st {
  CUlib_st* library;
  std::string name;
};

namespace fake {
namespace {

struct FatBinary {
  const char* family;
  const void* image;
};
const FatBinary kFatBinaries[] = {
#define X(family) {#family, sglk_fatbin_##family},
    SGLK_FAMILIES
#undef X
};

std::recursive_mutex mutex;
std::map<std::string, int> call_counts;
std::vector<Launch> launched;
thread_local std::vector<CUcontext> contexts;
thread_local int capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;  // torch's while it captures a graph

CUcontext context_of(int device) {
  static CUctx_st all[64];
  all[device].device = device;
  return &all[device];
}

bool fails(const char* function) {
  const std::lock_guard lock(mutex);
  ++call_counts[function];
  return machine().failing == function;
}

void require_relaxed_capture(const char* function) {
  if (capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED) {
    note_problem(std::string(function) + ": called in a capture mode that forbids it");
  }
}

}  // namespace

Machine& machine() {
  static Machine instance;
  return instance;
}

std::vector<Launch> launches() {
  const std::lock_guard lock(mutex);
  return std::exchange(launched, {});
}

int calls(const std::string& function) {
  const std::lock_guard lock(mutex);
  return call_counts[function];
}

void set_current_context(int device) {
  contexts.clear();
  if (device >= 0) contexts.push_back(context_of(device));
}

int context_depth() { return static_cast<int>(contexts.size()); }

bool is_capture_mode_restored() { return capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL; }

const std::vector<std::string>& families() {
  static const std::vector<std::string> names{
#define X(family) #family,
      SGLK_FAMILIES
#undef X
  };
  return names;
}

}  // namespace fake

using fake::machine;

#define FAKE_CUDA(function) \
  if (fake::fails(#function)) return static_cast<CUresult>(machine().failing_status)

extern "C" {

CUresult CUDAAPI cuGetErrorName(CUresult status, const char** name) {
  if (status != CUDA_ERROR_ILLEGAL_ADDRESS && status != CUDA_ERROR_INVALID_DEVICE)
    return CUDA_ERROR_INVALID_VALUE;
  *name = status == CUDA_ERROR_INVALID_DEVICE ? "CUDA_ERROR_INVALID_DEVICE" : "CUDA_ERROR_ILLEGAL_ADDRESS";
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGetErrorString(CUresult status, const char** text) {
  if (status != CUDA_ERROR_ILLEGAL_ADDRESS && status != CUDA_ERROR_INVALID_DEVICE)
    return CUDA_ERROR_INVALID_VALUE;
  *text = status == CUDA_ERROR_INVALID_DEVICE ? "no such device" : "an illegal address";
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuDeviceGet(CUdevice* device, int ordinal) {
  FAKE_CUDA(cuDeviceGet);
  if (ordinal < 0 || ordinal >= machine().devices) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  FAKE_CUDA(cuDeviceGetAttribute);
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = machine().compute_capability / 10;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = machine().compute_capability % 10;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = machine().multiprocessors;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = machine().shared_memory;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  FAKE_CUDA(cuDevicePrimaryCtxRetain);
  *context = fake::context_of(device);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxGetCurrent(CUcontext* context) {
  FAKE_CUDA(cuCtxGetCurrent);
  *context = fake::contexts.empty() ? nullptr : fake::contexts.back();
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxGetDevice(CUdevice* device) {
  FAKE_CUDA(cuCtxGetDevice);
  *device = fake::contexts.back()->device;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxPushCurrent_v2(CUcontext context) {
  FAKE_CUDA(cuCtxPushCurrent_v2);
  fake::contexts.push_back(context);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxPopCurrent_v2(CUcontext* context) {
  FAKE_CUDA(cuCtxPopCurrent_v2);
  *context = fake::contexts.back();
  fake::contexts.pop_back();
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  FAKE_CUDA(cuThreadExchangeStreamCaptureMode);
  const int previous = fake::capture_mode;
  fake::capture_mode = *mode;
  *mode = static_cast<CUstreamCaptureMode>(previous);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option*, void**, unsigned,
                                   CUlibraryOption*, void**, unsigned) {
  FAKE_CUDA(cuLibraryLoadData);
  fake::require_relaxed_capture(__func__);
  for (const auto& [family, image] : fake::kFatBinaries) {
    if (image == code) {
      *library = new CUlib_st{family};
      return CUDA_SUCCESS;
    }
  }
  return CUDA_ERROR_INVALID_IMAGE;
}
CUresult CUDAAPI cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
  FAKE_CUDA(cuLibraryGetKernel);
  fake::require_relaxed_capture(__func__);
  *kernel = new CUkern_st{library, name};
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  FAKE_CUDA(cuKernelGetFunction);
  fake::require_relaxed_capture(__func__);
  *function = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuKernelGetAttribute(int* value, CUfunction_attribute which, CUkernel, CUdevice) {
  FAKE_CUDA(cuKernelGetAttribute);
  if (which != CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
  *value = 128;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuKernelSetAttribute(CUfunction_attribute which, int value, CUkernel, CUdevice) {
  FAKE_CUDA(cuKernelSetAttribute);
  const bool is_limit = which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
  return is_limit && value == machine().shared_memory - 128 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
// What the driver API asks of a map of two dimensions.
CUresult CUDAAPI cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                        void* address, const cuuint64_t* sizes, const cuuint64_t* strides,
                                        const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave,
                                        CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                        CUtensorMapFloatOOBfill) {
  FAKE_CUDA(cuTensorMapEncodeTiled);
  if (rank != 2) return CUDA_ERROR_INVALID_VALUE;
  const cuuint64_t element = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT64 ? 8
                             : type == CU_TENSOR_MAP_DATA_TYPE_INT32 ? 4
                                                                     : 2;
  const bool is_aligned = reinterpret_cast<uintptr_t>(address) % 16 == 0 && strides[0] % 16 == 0 &&
                          reinterpret_cast<uintptr_t>(map) % 64 == 0;
  const bool has_rows = strides[0] >= sizes[0] * element && strides[0] < cuuint64_t{1} << 40;
  const cuuint64_t box_row = box[0] * element;
  const bool is_box = box_row % 16 == 0 && (swizzle != CU_TENSOR_MAP_SWIZZLE_128B || box_row <= 128);
  for (int i = 0; i < 2; ++i) {
    if (sizes[i] == 0 || sizes[i] > cuuint64_t{1} << 32 || box[i] == 0 || box[i] > 256 || steps[i] != 1) {
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  return is_aligned && has_rows && is_box ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params, void**) {
  FAKE_CUDA(cuLaunchKernelEx);
  const auto* const kernel = reinterpret_cast<CUkern_st*>(function);
  fake::Launch launch{};
  launch.family = kernel->library->family;
  launch.kernel = kernel->name;
  const uint32_t sizes[] = {config->gridDimX,  config->gridDimY,  config->gridDimZ,
                            config->blockDimX, config->blockDimY, config->blockDimZ};
  std::memcpy(launch.grid, sizes, sizeof(launch.grid));
  std::memcpy(launch.block, sizes + 3, sizeof(launch.block));
  for (uint32_t& size : launch.cluster) size = 1;
  launch.shared_bytes = config->sharedMemBytes;
  launch.stream = reinterpret_cast<uintptr_t>(config->hStream);
  if (fake::contexts.empty()) {
    fake::note_problem("cuLaunchKernelEx: no current context");
  } else {
    launch.device = fake::contexts.back()->device;
  }
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
      launch.is_pdl = attribute.value.programmaticStreamSerializationAllowed == 1;
    } else if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      const auto& size = attribute.value.clusterDim;
      const uint32_t cluster[] = {size.x, size.y, size.z};
      std::memcpy(launch.cluster, cluster, sizeof(cluster));
    } else {
      fake::note_problem("cuLaunchKernelEx: an attribute that the tests do not know");
    }
  }
  if (launch.family == "norm") {
    launch.params.norm = *static_cast<sglk::NormParams*>(params[0]);
  } else if (launch.family == "activation") {
    launch.params.activation = *static_cast<sglk::ActivationParams*>(params[0]);
  } else if (launch.family == "rope") {
    launch.params.rope = *static_cast<sglk::RopeParams*>(params[0]);
  } else if (launch.family == "merge") {
    launch.params.merge = *static_cast<sglk::MergeParams*>(params[0]);
  } else if (launch.family == "grammar") {
    launch.params.grammar = *static_cast<sglk::GrammarParams*>(params[0]);
  } else if (launch.family == "kv_store") {
    launch.params.kv_store = *static_cast<sglk::KvStoreParams*>(params[0]);
  } else if (launch.family == "moe_gate") {
    launch.params.moe_gate = *static_cast<sglk::MoeGateParams*>(params[0]);
  } else if (launch.family == "moe_align") {
    launch.params.moe_align = *static_cast<sglk::MoeAlignParams*>(params[0]);
  } else if (launch.family == "sampling") {
    launch.params.sampling = *static_cast<sglk::SamplingParams*>(params[0]);
  }
  const std::lock_guard lock(fake::mutex);
  fake::launched.push_back(launch);
  return CUDA_SUCCESS;
}

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream) {
  if (fake::fails(__func__)) return 1;
  *ret_stream = reinterpret_cast<void*>(uintptr_t{0x5000} + device_index);
  return 0;
}

// dlopen, dlsym and dlerror of everything linked here.
static const char kDriverLibrary[] = "libcuda.so.1", kTorchLibrary[] = "libtorch_cuda.so";

void* __wrap_dlopen(const char* file, int) {
  if (file == std::string(kDriverLibrary))
    return machine().has_driver ? const_cast<char*>(kDriverLibrary) : nullptr;
  if (file == std::string(kTorchLibrary)) {
    return machine().has_torch_cuda ? const_cast<char*>(kTorchLibrary) : nullptr;
  }
  fake::note_problem("dlopen: a library that the runtime has no business with");
  return nullptr;
}

char* __wrap_dlerror() {
  static char text[] = "libcuda.so.1: cannot open shared object file: No such file or directory";
  return text;
}

void* __wrap_dlsym(void* library, const char* symbol) {
  if (symbol == machine().missing_symbol) return nullptr;
  struct Entry {
    const char* library;
    const char* symbol;
    void* function;
  };
#define FAKE_ENTRY(function)                                      \
  {                                                               \
    kDriverLibrary, #function, reinterpret_cast<void*>(&function) \
  }
  static const Entry kEntries[] = {
      FAKE_ENTRY(cuGetErrorName),
      FAKE_ENTRY(cuGetErrorString),
      FAKE_ENTRY(cuDeviceGet),
      FAKE_ENTRY(cuDeviceGetAttribute),
      FAKE_ENTRY(cuDevicePrimaryCtxRetain),
      FAKE_ENTRY(cuCtxGetCurrent),
      FAKE_ENTRY(cuCtxGetDevice),
      FAKE_ENTRY(cuCtxPushCurrent_v2),
      FAKE_ENTRY(cuCtxPopCurrent_v2),
      FAKE_ENTRY(cuThreadExchangeStreamCaptureMode),
      FAKE_ENTRY(cuLibraryLoadData),
      FAKE_ENTRY(cuLibraryGetKernel),
      FAKE_ENTRY(cuKernelGetFunction),
      FAKE_ENTRY(cuKernelGetAttribute),
      FAKE_ENTRY(cuKernelSetAttribute),
      FAKE_ENTRY(cuLaunchKernelEx),
      FAKE_ENTRY(cuTensorMapEncodeTiled),
      {kTorchLibrary, kGetCurrentCudaStream, reinterpret_cast<void*>(&aoti_torch_get_current_cuda_stream)},
  };
  for (const Entry& entry : kEntries) {
    if (entry.library == library && entry.symbol == std::string(symbol)) return entry.function;
  }
  return nullptr;
}
}
