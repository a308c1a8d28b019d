// From torch's boxed calling convention to ordinary C++ functions and back.
//
// An op is a C++ function; boxed<fn> reads its arguments off the stack by the function's own signature:
//
//   schema                        C++ parameter or result
//   Tensor                        const Tensor&              (result: Tensor)
//   Tensor?                       const std::optional<Tensor>&
//   int, float, bool              int64_t, double, bool      (each also as std::optional<…>)
//   ScalarType                    DType
//   several returned tensors      std::tuple<Tensor, …>
//   ()                            void
//
// The callee owns every handle on the stack (torch 2.7.0, torch/csrc/stable/library.h): all are taken into
// RAII holders before the op can throw. An error is raised only after they are released, from a frame
// that holds nothing, because torch's exception then passes through it.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime/error.h"
#include "runtime/tensor.h"
#include "runtime/torch_shim.h"

namespace sglk {
namespace boxing {

// The callee's share of one slot, before it is read: releasing it twice is impossible, losing it too.
template <class T>
struct Slot {
  static_assert(std::is_same_v<T, int64_t> || std::is_same_v<T, double> || std::is_same_v<T, bool> ||
                    std::is_same_v<T, DType>,
                "no such argument type in torch's C ABI");
  StableIValue bits;
  explicit Slot(StableIValue value) : bits(value) {}
  T read() {
    if constexpr (std::is_same_v<T, bool>) {
      return (bits & 0xff) != 0;  // torch 2.7.0 copies one byte and leaves the rest undefined
    } else if constexpr (std::is_same_v<T, DType>) {
      return dtype_from_torch(static_cast<int32_t>(bits & 0xff));  // likewise
    } else {
      T value;
      std::memcpy(&value, &bits, sizeof(value));
      return value;
    }
  }
};

template <>
struct Slot<Tensor> {
  AtenTensorHandle handle;
  explicit Slot(StableIValue value) : handle(reinterpret_cast<AtenTensorHandle>(value)) {}
  Slot(const Slot&) = delete;
  ~Slot() {
    if (handle != nullptr) aoti_torch_delete_tensor_object(handle);
  }
  Tensor read() { return Tensor(std::exchange(handle, nullptr)); }
};

template <class T>
struct Slot<std::optional<T>> {
  bool has_value;
  Slot<T> inner;  // of zero bits, which hold nothing, where there is no value
  explicit Slot(StableIValue value) : Slot(reinterpret_cast<StableIValue*>(value)) {}
  std::optional<T> read() {
    if (!has_value) return std::nullopt;
    return std::optional<T>(inner.read());
  }

 private:
  explicit Slot(StableIValue* boxed) : has_value(boxed != nullptr), inner(has_value ? *boxed : 0) {
    delete boxed;  // torch allocates it with operator new, which is malloc in its C++ library and in ours
  }
};

inline void put(StableIValue* stack, Tensor result) {
  stack[0] = reinterpret_cast<StableIValue>(result.release());
}

template <class... Results>
void put(StableIValue* stack, std::tuple<Results...> results) {
  static_assert((std::is_same_v<Results, Tensor> && ...), "only tensors are returned");
  std::apply([&](auto&... result) { (put(stack++, std::move(result)), ...); }, results);
}

template <class Fn>
struct Signature;

template <class Result, class... Args>
struct Signature<Result (*)(Args...)> {
  template <size_t... kIndex>
  static void call(Result (*fn)(Args...), StableIValue* stack, uint64_t inputs,
                   std::index_sequence<kIndex...>) {
    // Before the stack is touched: what lies there is not what this signature says.
    SGLK_CHECK(inputs == sizeof...(Args), "schema: expected %zu arguments, got %lu", sizeof...(Args), inputs);
    [[maybe_unused]] std::tuple<Slot<std::decay_t<Args>>...> slots(stack[kIndex]...);
    std::tuple<std::decay_t<Args>...> arguments{std::get<kIndex>(slots).read()...};
    if constexpr (std::is_void_v<Result>) {
      fn(std::get<kIndex>(arguments)...);
    } else {
      put(stack, fn(std::get<kIndex>(arguments)...));
    }
  }
};

// Keeps the text for the thread until its next error. A plain pointer: a thread_local with a destructor would
// tie the library to glibc 2.18.
inline const char* remember(const char* text) {
  static thread_local char* message = nullptr;
  free(message);
  message = strdup(text);
  return message != nullptr ? message : "sgl_kernel: out of memory";
}

// Runs the op; the message of its error, or null.
template <auto kOp>
const char* run(StableIValue* stack, uint64_t inputs) noexcept {
  using Sig = Signature<decltype(kOp)>;
  try {
    [&]<class Result, class... Args>(Result (*fn)(Args...)) {
      Sig::call(fn, stack, inputs, std::index_sequence_for<Args...>{});
    }(kOp);
    return nullptr;
  } catch (const std::exception& error) {
    return remember(error.what());
  } catch (...) {
    return "sgl_kernel: unknown C++ exception";
  }
}

}  // namespace boxing

template <auto kOp>
void boxed(StableIValue* stack, uint64_t inputs, uint64_t /*outputs*/) {
  if (const char* message = boxing::run<kOp>(stack, inputs)) {
    aoti_torch_check(false, "sgl_kernel", "", 0, message);
  }
}

}  // namespace sglk
