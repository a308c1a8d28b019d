// Ops that only record what reached them: every argument type in every neighbourhood, every kind of result.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "runtime/tensor.h"

namespace probes {

// A tensor as an op sees it.
struct View {
  std::vector<int64_t> sizes, strides;
  int64_t numel;
  std::string shape, dtype, device;
  uintptr_t address;
};

View view(const sglk::Tensor& tensor);

struct None {};
struct DTypeName {
  std::string name;
};
using Value = std::variant<None, int64_t, double, bool, DTypeName, View>;

// What the probes saw since the last call.
std::vector<Value> seen();

// How every probe ends: "", "Error", "exception" (a std::logic_error with `text`), "bad_alloc" or "int".
void misbehave(const std::string& how, const std::string& text);

// Tensors moved about: the shape of each that is left, in order.
std::vector<std::string> move_about(sglk::Tensor first, sglk::Tensor second);

}  // namespace probes
