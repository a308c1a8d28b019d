// Parameters of the merge kernels, shared by host and device.
#pragma once

namespace sglk {

// Every tensor is contiguous. An output may be the input of the same kind.
struct MergeParams {
  void* v_merged;    // [rows, dim]
  float* s_merged;   // [rows]
  const void* v_a;   // [rows, dim]
  const void* v_b;   // [rows, dim]
  const float* s_a;  // [rows]
  const float* s_b;  // [rows]
  long rows;         // tokens · heads
  int units;         // vectors, or elements, of a row; at least 1
  int lanes_log2;    // 2^lanes_log2 threads of a warp share a row
};

}  // namespace sglk
