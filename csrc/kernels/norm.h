// Parameters of the norm kernels, shared by host and device.
#pragma once

namespace sglk {

// Strides are in elements. Every row is contiguous.
struct NormParams {
  void* output;        // [tokens, hidden]; of fused_add: the input, overwritten
  const void* input;   // [tokens, hidden], may be output
  void* residual;      // [tokens, hidden], overwritten; null unless fused_add
  const void* weight;  // [hidden]
  long output_stride;
  long input_stride;
  long residual_stride;
  int tokens;
  int hidden;
  float eps;
  float weight_bias;  // added to the weight in fp32: 1 for gemma, else 0
};

}  // namespace sglk
