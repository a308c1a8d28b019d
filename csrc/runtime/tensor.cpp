#include "runtime/tensor.h"

#include <iterator>

namespace sglk {
namespace {

struct DTypeEntry {
  const char* name;
  int32_t (*torch_code)();
};

// In the order of DType. What is not here is kOther.
constexpr DTypeEntry kDTypes[] = {
    {"float16", aoti_torch_dtype_float16},
    {"bfloat16", aoti_torch_dtype_bfloat16},
    {"float32", aoti_torch_dtype_float32},
    {"float64", aoti_torch_dtype_float64},
    {"float8_e4m3fn", aoti_torch_dtype_float8_e4m3fn},
    {"float8_e5m2", aoti_torch_dtype_float8_e5m2},
    {"int8", aoti_torch_dtype_int8},
    {"int16", aoti_torch_dtype_int16},
    {"int32", aoti_torch_dtype_int32},
    {"int64", aoti_torch_dtype_int64},
    {"uint8", aoti_torch_dtype_uint8},
    {"uint32", aoti_torch_dtype_uint32},
    {"uint64", aoti_torch_dtype_uint64},
    {"bool", aoti_torch_dtype_bool},
};
static_assert(std::size(kDTypes) == static_cast<size_t>(DType::kOther));

// torch's code -> DType. torch has fewer than 64 dtypes and does not renumber them, but says so nowhere:
// the table is filled from its own functions.
struct DTypeTable {
  DType from_code[64];
  DTypeTable() {
    for (DType& entry : from_code) entry = DType::kOther;
    for (size_t i = 0; i < std::size(kDTypes); ++i) {
      const int32_t code = kDTypes[i].torch_code();
      if (code >= 0 && code < 64) from_code[code] = static_cast<DType>(i);
    }
  }
};

void require(AOTITorchError status, const char* call) {
  SGLK_CHECK(status == 0, "torch: %s: failed; torch printed the reason", call);
}

}  // namespace

const char* name(DType dtype) {
  return dtype == DType::kOther ? "another dtype" : kDTypes[static_cast<size_t>(dtype)].name;
}

DType dtype_from_torch(int32_t code) {
  static const DTypeTable table;
  return code >= 0 && code < 64 ? table.from_code[code] : DType::kOther;
}

int32_t dtype_to_torch(DType dtype) {
  SGLK_CHECK(dtype != DType::kOther, "dtype: expected one that this library knows, got another");
  return kDTypes[static_cast<size_t>(dtype)].torch_code();
}

std::string name(Device device) {
  switch (device.type) {
    case DeviceType::kCpu:
      return "cpu";
    case DeviceType::kCuda:
      return format("cuda:%d", device.index);
    default:
      return "another device";
  }
}

Tensor::Tensor(AtenTensorHandle handle) : handle_(handle) {
  static const int32_t cpu = aoti_torch_device_type_cpu(), cuda = aoti_torch_device_type_cuda();
  int32_t dtype = 0, device_type = 0;
  int64_t *sizes = nullptr, *strides = nullptr;
  const bool is_read =
      aoti_torch_get_data_ptr(handle, &data_) == 0 && aoti_torch_get_dim(handle, &dim_) == 0 &&
      aoti_torch_get_sizes(handle, &sizes) == 0 && aoti_torch_get_strides(handle, &strides) == 0 &&
      aoti_torch_get_dtype(handle, &dtype) == 0 && aoti_torch_get_device_type(handle, &device_type) == 0 &&
      aoti_torch_get_device_index(handle, &device_.index) == 0;
  if (!is_read) {
    aoti_torch_delete_tensor_object(handle);  // no destructor runs when a constructor throws
    throw Error("tensor: expected a strided tensor with storage, got one that torch cannot describe");
  }
  sizes_ = sizes;
  strides_ = strides;
  dtype_ = dtype_from_torch(dtype);
  device_.type = device_type == cuda  ? DeviceType::kCuda
                 : device_type == cpu ? DeviceType::kCpu
                                      : DeviceType::kOther;
}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  std::swap(handle_, other.handle_);
  data_ = other.data_;
  dim_ = other.dim_;
  sizes_ = other.sizes_;
  strides_ = other.strides_;
  dtype_ = other.dtype_;
  device_ = other.device_;
  return *this;
}

Tensor::~Tensor() {
  if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
}

Tensor Tensor::empty(std::initializer_list<int64_t> sizes, DType dtype, Device device) {
  constexpr size_t kMaxDim = 8;
  SGLK_CHECK(sizes.size() <= kMaxDim, "empty: dim: expected at most %zu, got %zu", kMaxDim, sizes.size());
  int64_t strides[kMaxDim];
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes.begin()[d] > 0 ? sizes.begin()[d] : 1;
  }
  const int32_t type =
      device.type == DeviceType::kCuda ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  AtenTensorHandle handle = nullptr;
  require(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                                   dtype_to_torch(dtype), type, device.index, &handle),
          "aoti_torch_empty_strided");
  return Tensor(handle);
}

int64_t Tensor::numel() const {
  int64_t count = 1;
  for (int64_t d = 0; d < dim_; ++d) count *= sizes_[d];
  return count;
}

std::string Tensor::shape() const {
  std::string text = "[";
  for (int64_t d = 0; d < dim_; ++d) text += format(d == 0 ? "%ld" : ", %ld", sizes_[d]);
  return text + "]";
}

}  // namespace sglk
