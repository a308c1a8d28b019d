// The CUDA driver and libtorch_cuda.so as csrc/runtime/driver.cpp finds them: dlopen and dlsym are replaced
// by the linker's --wrap, so the tests see the same driver on every machine, or none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/activation.h"
#include "kernels/grammar.h"
#include "kernels/kv_store.h"
#include "kernels/merge.h"
#include "kernels/moe_align.h"
#include "kernels/moe_gate.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/sampling.h"

namespace fake {

struct Launch {
  std::string family, kernel;
  uint32_t grid[3], block[3], cluster[3];
  uint32_t shared_bytes;
  uintptr_t stream;
  int device;  // of the context that was current
  bool is_pdl;
  union {
    sglk::NormParams norm;
    sglk::ActivationParams activation;
    sglk::RopeParams rope;
    sglk::MergeParams merge;
    sglk::GrammarParams grammar;
    sglk::KvStoreParams kv_store;
    sglk::MoeGateParams moe_gate;
    sglk::MoeAlignParams moe_align;
    sglk::SamplingParams sampling;
  } params;
};

struct Machine {
  bool has_driver = false, has_torch_cuda = true;
  std::string missing_symbol;  // that dlsym does not find
  int devices = 2, compute_capability = 90, multiprocessors = 132, shared_memory = 232448;
  std::string failing;       // function that fails from now on
  int failing_status = 700;  // with this CUresult
};

Machine& machine();

std::vector<Launch> launches();          // since the last call
int calls(const std::string& function);  // so far
void set_current_context(int device);    // of this thread; -1: none
int context_depth();                     // contexts of this thread
bool is_capture_mode_restored();         // of this thread
const std::vector<std::string>& families();

}  // namespace fake
