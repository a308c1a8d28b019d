#include "runtime/registry.h"

#include <string>

namespace sglk {
namespace {

constexpr const char* kNamespace = "sgl_kernel";

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
  if (!is_registered) {
    const std::string message = "sgl_kernel: " + op + ": torch refused to register it; another package that " +
                                "defines torch.ops." + kNamespace + " is loaded in this process";
    aoti_torch_check(false, "sgl_kernel", "", 0, message.c_str());
  }
}

}  // namespace sglk
