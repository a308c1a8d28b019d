#include "fake_torch.h"

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

struct AtenTensorOpaque {
  fake::TensorSpec spec;
  bool is_alive = true;
};

class TorchLibraryOpaque {
 public:
  std::string name_space, key;  // no key: definitions
};

namespace fake {
namespace {

enum class SlotState : uint8_t { kUnused, kLive, kFreed };
constexpr size_t kMaxSlots = 4096;

struct State {
  std::recursive_mutex mutex;
  std::unordered_map<AtenTensorHandle, std::unique_ptr<AtenTensorOpaque>> handles;  // the dead ones too
  std::vector<std::string> problems;
  std::vector<Registration> registrations;
  std::string failing;
  int failing_in = 0;
  std::vector<int64_t> empty_strides;
  std::map<std::string, int32_t> dtype_codes{
      {"uint8", 0},        {"int8", 1},           {"int16", 2},   {"int32", 3},   {"int64", 4},
      {"float16", 5},      {"float32", 6},        {"float64", 7}, {"bool", 11},   {"bfloat16", 15},
      {"float8_e5m2", 23}, {"float8_e4m3fn", 24}, {"uint32", 28}, {"uint64", 29},
  };
  int barrier_threads = 0, barrier_arrived = 0;
  std::condition_variable_any barrier;

  State() {
    if (const char* text = getenv("FAKE_TORCH_FAIL")) {
      const std::string rule = text;
      const size_t colon = rule.find(':');
      failing = rule.substr(0, colon);
      failing_in = std::stoi(rule.substr(colon + 1));
    }
  }
};

// Made by the first registration, which runs while the module is loaded; never destroyed.
State& state() {
  static State& instance = *new State;
  return instance;
}

// Outside State: operator delete asks for every pointer that is freed.
std::array<StableIValue, kMaxSlots> slots;
std::array<std::atomic<SlotState>, kMaxSlots> slot_states;
std::atomic<size_t> slot_count{0};

// Handles and slots that this thread owes: zero whenever torch's exception passes.
thread_local int owed = 0;

void kill(AtenTensorHandle handle) {
  handle->is_alive = false;
  for (auto* list : {&handle->spec.sizes, &handle->spec.strides}) {
    for (int64_t& value : *list) value = -0x6bad6bad6bad6bad;
  }
  --owed;
}

// The tensor behind a handle, or null with the misuse noted.
AtenTensorOpaque* find(AtenTensorHandle handle, const char* function) {
  State& s = state();
  const auto found = s.handles.find(handle);
  if (found == s.handles.end()) {
    note_problem(std::string(function) + ": a handle that torch never gave");
    return nullptr;
  }
  if (!found->second->is_alive) {
    note_problem(std::string(function) + ": a handle that is released already");
    return nullptr;
  }
  return found->second.get();
}

bool must_fail(const char* function) {
  State& s = state();
  if (s.failing_in == 0 || (!s.failing.empty() && s.failing != function)) return false;
  return --s.failing_in == 0;
}

// One getter of torch: 0 and the value, or 1.
template <class Get>
AOTITorchError read(AtenTensorHandle handle, const char* function, Get get) {
  const std::lock_guard lock(state().mutex);
  AtenTensorOpaque* const tensor = find(handle, function);
  if (tensor == nullptr || must_fail(function)) return 1;
  get(tensor->spec);
  return 0;
}

int32_t dtype_code(const char* dtype) {
  const std::lock_guard lock(state().mutex);
  return state().dtype_codes.at(dtype);
}

bool free_slot(void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer),
             first = reinterpret_cast<uintptr_t>(slots.data());
  if (address < first || address >= first + sizeof(slots)) return false;
  const size_t index = (address - first) / sizeof(StableIValue);
  if (slot_states[index].exchange(SlotState::kFreed) != SlotState::kLive)
    note_problem("an optional slot freed twice");
  slots[index] = 0xdbdbdbdbdbdbdbdb;
  --owed;
  return true;
}

}  // namespace

AtenTensorHandle new_tensor(const TensorSpec& spec) {
  const std::lock_guard lock(state().mutex);
  auto tensor = std::make_unique<AtenTensorOpaque>();
  tensor->spec = spec;
  const AtenTensorHandle handle = tensor.get();
  state().handles.emplace(handle, std::move(tensor));
  ++owed;
  return handle;
}

TensorSpec take_tensor(AtenTensorHandle handle) {
  const std::lock_guard lock(state().mutex);
  AtenTensorOpaque* const tensor = find(handle, "result");
  if (tensor == nullptr) return {};
  const TensorSpec spec = tensor->spec;
  kill(handle);
  return spec;
}

StableIValue* new_slot(StableIValue value) {
  const size_t index = slot_count++;
  if (index >= kMaxSlots)
    throw std::length_error("fake torch: too many optional slots; call problems() in between");
  slots[index] = value;
  slot_states[index] = SlotState::kLive;
  ++owed;
  return &slots[index];
}

void fail(const std::string& function, int nth) {
  const std::lock_guard lock(state().mutex);
  state().failing = function;
  state().failing_in = nth;
}

bool is_failure_pending() {
  const std::lock_guard lock(state().mutex);
  return state().failing_in > 0;
}

const std::vector<std::string>& fallible() {
  static const std::vector<std::string> names{
      "aoti_torch_delete_tensor_object",
      "aoti_torch_get_data_ptr",
      "aoti_torch_get_dim",
      "aoti_torch_get_sizes",
      "aoti_torch_get_strides",
      "aoti_torch_get_dtype",
      "aoti_torch_get_device_type",
      "aoti_torch_get_device_index",
      "aoti_torch_empty_strided",
      "aoti_torch_library_init_def",
      "aoti_torch_library_init_impl",
      "aoti_torch_library_def",
      "aoti_torch_library_impl",
  };
  return names;
}

void set_dtype_code(const std::string& dtype, int32_t code) {
  const std::lock_guard lock(state().mutex);
  state().dtype_codes.at(dtype) = code;
}

void set_check_barrier(int threads) {
  const std::lock_guard lock(state().mutex);
  state().barrier_threads = threads;
  state().barrier_arrived = 0;
}

void note_problem(const std::string& text) {
  const std::lock_guard lock(state().mutex);
  state().problems.push_back(text);
}

std::vector<std::string> problems() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  int handles = 0, live_slots = 0;
  for (const auto& [handle, tensor] : s.handles) handles += tensor->is_alive;
  for (size_t i = 0; i < slot_count && i < kMaxSlots; ++i) live_slots += slot_states[i] == SlotState::kLive;
  if (handles > 0) note_problem(std::to_string(handles) + " handles not released");
  if (live_slots > 0) note_problem(std::to_string(live_slots) + " optional slots not freed");
  s.handles.clear();
  slot_count = 0;
  owed = 0;
  s.failing_in = 0;
  s.barrier_threads = 0;
  return std::exchange(s.problems, {});
}

const std::vector<Registration>& registrations() { return state().registrations; }

std::vector<int64_t> last_empty_strides() { return state().empty_strides; }

}  // namespace fake

// operator delete of everything linked here (the linker's --wrap): sees who frees an optional slot.
extern "C" {
void __real__ZdlPv(void* pointer);
void __real__ZdlPvm(void* pointer, size_t size);
void __wrap__ZdlPv(void* pointer) {
  if (!fake::free_slot(pointer)) __real__ZdlPv(pointer);
}
void __wrap__ZdlPvm(void* pointer, size_t size) {
  if (!fake::free_slot(pointer)) __real__ZdlPvm(pointer, size);
}
}

using fake::must_fail;
using fake::state;

extern "C" {

int32_t aoti_torch_device_type_cpu() { return 0; }
int32_t aoti_torch_device_type_cuda() { return 1; }

int32_t aoti_torch_dtype_float8_e5m2() { return fake::dtype_code("float8_e5m2"); }
int32_t aoti_torch_dtype_float8_e4m3fn() { return fake::dtype_code("float8_e4m3fn"); }
int32_t aoti_torch_dtype_bfloat16() { return fake::dtype_code("bfloat16"); }
int32_t aoti_torch_dtype_float16() { return fake::dtype_code("float16"); }
int32_t aoti_torch_dtype_float32() { return fake::dtype_code("float32"); }
int32_t aoti_torch_dtype_float64() { return fake::dtype_code("float64"); }
int32_t aoti_torch_dtype_uint8() { return fake::dtype_code("uint8"); }
int32_t aoti_torch_dtype_uint32() { return fake::dtype_code("uint32"); }
int32_t aoti_torch_dtype_uint64() { return fake::dtype_code("uint64"); }
int32_t aoti_torch_dtype_int8() { return fake::dtype_code("int8"); }
int32_t aoti_torch_dtype_int16() { return fake::dtype_code("int16"); }
int32_t aoti_torch_dtype_int32() { return fake::dtype_code("int32"); }
int32_t aoti_torch_dtype_int64() { return fake::dtype_code("int64"); }
int32_t aoti_torch_dtype_bool() { return fake::dtype_code("bool"); }

// torch may fail only after the tensor is gone, so a failure releases the handle too.
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  const std::lock_guard lock(state().mutex);
  if (fake::find(tensor, __func__) == nullptr) return 1;
  fake::kill(tensor);
  return must_fail(__func__) ? 1 : 0;
}
AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** ret) {
  return fake::read(tensor, __func__,
                    [&](fake::TensorSpec& spec) { *ret = reinterpret_cast<void*>(spec.address); });
}
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* ret) {
  return fake::read(tensor, __func__,
                    [&](fake::TensorSpec& spec) { *ret = static_cast<int64_t>(spec.sizes.size()); });
}
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** ret) {
  return fake::read(tensor, __func__, [&](fake::TensorSpec& spec) { *ret = spec.sizes.data(); });
}
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** ret) {
  return fake::read(tensor, __func__, [&](fake::TensorSpec& spec) { *ret = spec.strides.data(); });
}
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* ret) {
  return fake::read(tensor, __func__, [&](fake::TensorSpec& spec) { *ret = spec.dtype; });
}
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, int32_t* ret) {
  return fake::read(tensor, __func__, [&](fake::TensorSpec& spec) { *ret = spec.device_type; });
}
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle tensor, int32_t* ret) {
  return fake::read(tensor, __func__, [&](fake::TensorSpec& spec) { *ret = spec.device_index; });
}

AOTITorchError aoti_torch_empty_strided(int64_t ndim, const int64_t* sizes, const int64_t* strides,
                                        int32_t dtype, int32_t device_type, int32_t device_index,
                                        AtenTensorHandle* ret) {
  const std::lock_guard lock(state().mutex);
  if (must_fail(__func__)) return 1;
  fake::TensorSpec spec;
  spec.sizes.assign(sizes, sizes + ndim);
  spec.strides.assign(strides, strides + ndim);
  spec.dtype = dtype;
  spec.device_type = device_type;
  spec.device_index = device_index;
  spec.address = 0x100000;
  state().empty_strides = spec.strides;
  *ret = fake::new_tensor(spec);
  return 0;
}

AOTITorchError aoti_torch_library_init_def(const char* ns, const char*, uint32_t, TorchLibraryHandle* ret) {
  const std::lock_guard lock(state().mutex);
  if (must_fail(__func__)) return 1;
  *ret = new TorchLibraryOpaque{ns, ""};
  return 0;
}
AOTITorchError aoti_torch_library_init_impl(const char* ns, const char* k, const char*, uint32_t,
                                            TorchLibraryHandle* ret) {
  const std::lock_guard lock(state().mutex);
  if (must_fail(__func__)) return 1;
  *ret = new TorchLibraryOpaque{ns, k};
  return 0;
}
AOTITorchError aoti_torch_library_def(TorchLibraryHandle self, const char* schema) {
  const std::lock_guard lock(state().mutex);
  if (must_fail(__func__)) return 1;
  const std::string text = schema, name = text.substr(0, text.find('('));
  if (!self->key.empty()) fake::note_problem(name + ": defined in a library of implementations");
  for (const fake::Registration& known : state().registrations) {
    if (known.name == name) return 1;  // torch refuses a second definition
  }
  state().registrations.push_back({name, text, self->name_space, "", nullptr});
  return 0;
}
AOTITorchError aoti_torch_library_impl(TorchLibraryHandle self, const char* name,
                                       void (*fn)(StableIValue*, uint64_t, uint64_t)) {
  const std::lock_guard lock(state().mutex);
  if (must_fail(__func__)) return 1;
  for (fake::Registration& known : state().registrations) {
    if (known.name == name && known.name_space == self->name_space && known.entry == nullptr) {
      known.key = self->key;
      known.entry = fn;
      return 0;
    }
  }
  fake::note_problem(std::string(name) + ": implemented before it is defined, or twice");
  return 1;
}

void aoti_torch_check(bool cond, const char*, const char*, uint32_t, const char* msg) {
  if (cond) return;
  if (fake::owed != 0) {
    fake::note_problem("aoti_torch_check: raised while the op still holds " + std::to_string(fake::owed) +
                       " handles or slots");
  }
  {
    std::unique_lock lock(state().mutex);
    if (state().barrier_threads > 0) {
      ++state().barrier_arrived;
      state().barrier.notify_all();
      const bool is_complete = state().barrier.wait_for(
          lock, std::chrono::seconds(20), [] { return state().barrier_arrived >= state().barrier_threads; });
      if (!is_complete) fake::note_problem("aoti_torch_check: the other threads never came");
    }
  }
  throw fake::CheckFailed(msg);
}
}
