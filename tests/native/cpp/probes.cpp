#include "probes.h"

#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "runtime/registry.h"

namespace probes {
namespace {

using sglk::DType;
using sglk::Tensor;

std::mutex mutex;
std::vector<Value> values;
std::string misbehaviour, misbehaviour_text;

// A type of the schema language and the C++ parameter that stands for it.
template <class T>
struct Type;
template <>
struct Type<Tensor> {
  using Parameter = const Tensor&;
  static std::string name() { return "Tensor"; }
  static Value value(const Tensor& tensor) { return view(tensor); }
};
template <>
struct Type<int64_t> {
  using Parameter = int64_t;
  static std::string name() { return "int"; }
  static Value value(int64_t number) { return number; }
};
template <>
struct Type<double> {
  using Parameter = double;
  static std::string name() { return "float"; }
  static Value value(double number) { return number; }
};
template <>
struct Type<bool> {
  using Parameter = bool;
  static std::string name() { return "bool"; }
  static Value value(bool flag) { return flag; }
};
template <>
struct Type<DType> {
  using Parameter = DType;
  static std::string name() { return "ScalarType"; }
  static Value value(DType dtype) { return DTypeName{sglk::name(dtype)}; }
};
template <class T>
struct Type<std::optional<T>> {
  using Parameter = const std::optional<T>&;
  static std::string name() { return Type<T>::name() + "?"; }
  static Value value(const std::optional<T>& optional) {
    return optional ? Type<T>::value(*optional) : Value(None{});
  }
};

using Types = std::tuple<Tensor, std::optional<int64_t>, bool, std::optional<Tensor>, double, DType,
                         std::optional<bool>, int64_t, std::optional<DType>, std::optional<double>>;
constexpr size_t kTypes = std::tuple_size_v<Types>;

void end() {
  std::string how, text;
  {
    const std::lock_guard lock(mutex);
    how = misbehaviour;
    text = misbehaviour_text;
  }
  if (how == "Error") throw sglk::Error(text);
  if (how == "exception") throw std::logic_error(text);
  if (how == "bad_alloc") throw std::bad_alloc();
  if (how == "int") throw 42;
}

Tensor result(int64_t size) { return Tensor::empty({size, 3}, DType::kFloat32, {sglk::DeviceType::kCpu, 0}); }

template <class Result, class... Args>
Result probe(typename Type<Args>::Parameter... arguments) {
  {
    const std::lock_guard lock(mutex);
    (values.push_back(Type<Args>::value(arguments)), ...);
  }
  if constexpr (std::is_same_v<Result, Tensor>) {
    Tensor only = result(1);
    end();
    return only;
  } else if constexpr (std::is_same_v<Result, std::tuple<Tensor, Tensor, Tensor>>) {
    Result three{result(1), result(2), result(3)};
    end();
    return three;
  } else {
    end();
  }
}

template <class Result, class... Args>
void define(const std::string& name, const char* returns) {
  std::string arguments;
  ((arguments += (arguments.empty() ? "" : ", ") + Type<Args>::name() + " x"), ...);
  const std::string schema = "probe_" + name + "(" + arguments + ") -> " + returns;
  sglk::OpRegistration(schema.c_str(), sglk::boxed<&probe<Result, Args...>>);
}

// All types, beginning with the kFirst-th: each type comes to stand at each position.
template <size_t kFirst, size_t... kIndex>
void define_all(std::index_sequence<kIndex...>) {
  const std::string suffix = std::to_string(kFirst);
  define<void, std::tuple_element_t<(kFirst + kIndex) % kTypes, Types>...>("all_" + suffix, "()");
  define<void, std::tuple_element_t<kFirst, Types>>("one_" + suffix, "()");
}

template <size_t... kFirst>
bool define_every(std::index_sequence<kFirst...> sequence) {
  (define_all<kFirst>(sequence), ...);
  define<void>("none", "()");
  define<Tensor, Tensor, std::optional<Tensor>>("returns_one", "Tensor");
  define<std::tuple<Tensor, Tensor, Tensor>, int64_t>("returns_more_than_it_takes",
                                                      "(Tensor, Tensor, Tensor)");
  define<std::tuple<Tensor, Tensor, Tensor>, std::optional<Tensor>, Tensor, Tensor, bool, Tensor>(
      "returns_three", "(Tensor, Tensor, Tensor)");
  return true;
}

[[maybe_unused]] const bool is_defined = define_every(std::make_index_sequence<kTypes>());

}  // namespace

View view(const Tensor& tensor) {
  View seen{{},
            {},
            tensor.numel(),
            tensor.shape(),
            sglk::name(tensor.dtype()),
            sglk::name(tensor.device()),
            reinterpret_cast<uintptr_t>(tensor.data())};
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    seen.sizes.push_back(tensor.size(d));
    seen.strides.push_back(tensor.stride(d - tensor.dim()));
  }
  return seen;
}

std::vector<Value> seen() {
  const std::lock_guard lock(mutex);
  return std::exchange(values, {});
}

void misbehave(const std::string& how, const std::string& text) {
  const std::lock_guard lock(mutex);
  misbehaviour = how;
  misbehaviour_text = text;
}

std::vector<std::string> move_about(Tensor first, Tensor second) {
  Tensor taken(std::move(first));  // constructed from another
  first = std::move(second);       // into one that is moved from
  Tensor& alias = taken;
  taken = std::move(alias);  // into itself
  std::vector<std::string> shapes{taken.shape(), first.shape()};
  taken = std::move(first);  // over one that owns
  shapes.push_back(taken.shape());
  return shapes;
}

}  // namespace probes
