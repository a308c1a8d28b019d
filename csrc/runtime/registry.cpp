#include "runtime/registry.h"

#include <cstring>
#include <string>

namespace sglk {
namespace {

constexpr const char* kNamespace = "sgl_kernel";

const char* load_error = nullptr;

// The library objects live as long as the process: destroying one deregisters its ops.
TorchLibraryHandle definitions() {
  static const TorchLibraryHandle handle = [] {
    TorchLibraryHandle lib = nullptr;
    aoti_torch_library_init_def(kNamespace, "sgl_kernel", 0, &lib);
    return lib;
  }();
  return handle;
}

TorchLibraryHandle cuda_implementations() {
  static const TorchLibraryHandle handle = [] {
    TorchLibraryHandle lib = nullptr;
    aoti_torch_library_init_impl(kNamespace, "CUDA", "sgl_kernel", 0, &lib);
    return lib;
  }();
  return handle;
}

}  // namespace

OpRegistration::OpRegistration(const char* schema, void (*entry)(StableIValue*, uint64_t, uint64_t)) {
  const std::string op(schema, std::string(schema).find('('));
  const bool is_registered = definitions() != nullptr && cuda_implementations() != nullptr &&
                             aoti_torch_library_def(definitions(), schema) == 0 &&
                             aoti_torch_library_impl(cuda_implementations(), op.c_str(), entry) == 0;
  if (!is_registered && load_error == nullptr) {
    load_error = strdup(format("sgl_kernel: %s: torch refused to register it; another package that defines "
                               "torch.ops.%s is loaded in this process",
                               op.c_str(), kNamespace)
                            .c_str());
  }
}

}  // namespace sglk

const char* sglk_load_error() { return sglk::load_error; }
