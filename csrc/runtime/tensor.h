// A tensor as ops see it: an owned torch handle with its pointer, dtype, device, sizes and strides read once.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "runtime/error.h"
#include "runtime/torch_shim.h"

namespace sglk {

enum class DType : uint8_t {
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
  kFloat8E4M3,
  kFloat8E5M2,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUInt8,
  kUInt32,
  kUInt64,
  kBool,
  kOther,
};

const char* name(DType dtype);
DType dtype_from_torch(int32_t code);
int32_t dtype_to_torch(DType dtype);

enum class DeviceType : uint8_t { kCpu, kCuda, kOther };

struct Device {
  DeviceType type = DeviceType::kOther;
  int32_t index = -1;
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  bool operator!=(const Device& other) const { return !(*this == other); }
};

std::string name(Device device);

class Tensor {
 public:
  // Takes over the reference that `handle` stands for, also when it throws.
  explicit Tensor(AtenTensorHandle handle);
  Tensor(Tensor&& other) noexcept { *this = std::move(other); }
  Tensor& operator=(Tensor&& other) noexcept;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor();

  // A fresh contiguous tensor from torch's allocator.
  static Tensor empty(std::initializer_list<int64_t> sizes, DType dtype, Device device);

  // Gives the reference away (to torch's stack).
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  template <class T = void>
  T* data() const {
    return static_cast<T*>(data_);
  }
  int64_t dim() const { return dim_; }
  // Negative dimensions count from the last; the caller knows that they exist.
  int64_t size(int64_t d) const { return sizes_[d < 0 ? d + dim_ : d]; }
  int64_t stride(int64_t d) const { return strides_[d < 0 ? d + dim_ : d]; }
  int64_t numel() const;
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  // "[2, 3]", for messages.
  std::string shape() const;

 private:
  AtenTensorHandle handle_ = nullptr;
  void* data_ = nullptr;
  int64_t dim_ = 0;
  const int64_t* sizes_ = nullptr;
  const int64_t* strides_ = nullptr;
  DType dtype_ = DType::kOther;
  Device device_;
};

}  // namespace sglk
