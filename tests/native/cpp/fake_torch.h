// torch's C ABI (csrc/runtime/torch_shim.h) over tensors that are descriptions without data.
//
// It keeps the books that torch does not: which handles and optional slots are alive, who released what
// twice, which calls were made. Any function that can fail can be told to.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/torch_shim.h"

namespace fake {

struct TensorSpec {
  std::vector<int64_t> sizes, strides;
  int32_t dtype = 0, device_type = 0, device_index = 0;  // torch's codes
  uintptr_t address = 0;
};

// What aoti_torch_check throws, as c10::Error in torch: Python sees a RuntimeError.
class CheckFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Registration {
  std::string name, schema, name_space, key;
  void (*entry)(StableIValue*, uint64_t, uint64_t) = nullptr;
};

// The caller owns the handle, as torch's stack does before a boxed call.
AtenTensorHandle new_tensor(const TensorSpec& spec);
// What the handle stands for; the handle is released. A dead or foreign one is a problem.
TensorSpec take_tensor(AtenTensorHandle handle);
// An optional's slot on the heap, as torch hands it to a boxed call.
StableIValue* new_slot(StableIValue value);

// The nth call from now of `function` (empty: of any that can fail) fails; 0: none. The environment variable
// FAKE_TORCH_FAIL=function:nth does the same before the first call.
void fail(const std::string& function, int nth);
bool is_failure_pending();
const std::vector<std::string>& fallible();
void set_dtype_code(const std::string& dtype, int32_t code);

// aoti_torch_check waits until so many threads are inside before it reads its message.
void set_check_barrier(int threads);

void note_problem(const std::string& text);
// Everything wrong since the last call: misuse, handles and slots that still live. Starts afresh.
std::vector<std::string> problems();

const std::vector<Registration>& registrations();
std::vector<int64_t> last_empty_strides();

}  // namespace fake
