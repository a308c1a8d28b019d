// Parameters of the moe_gate kernels, shared by host and device.
#pragma once

namespace sglk {

// Strides are in elements. Every row is contiguous.
struct MoeGateParams {
  float* weights;     // [tokens, topk]
  int* ids;           // [tokens, topk]
  const void* input;  // [tokens, experts]
  const void* bias;   // [experts]; null unless moe_fused_gate
  long weights_stride;
  long ids_stride;
  long input_stride;
  long tokens;
  int experts;
  int topk;             // columns of weights and ids
  int group_size;       // a power of two
  int topk_group;       // groups that stay
  int shared;           // the last columns, of experts that every token takes
  int bias_type;        // 0: bf16, 1: fp16, 2: fp32
  float shared_weight;  // of such a column
  float scale;          // of the other weights
  bool is_renormalized;
};

}  // namespace sglk
