// Parameters of the activation kernels, shared by host and device.
#pragma once

namespace sglk {

// Strides are in elements. Every row is contiguous.
struct ActivationParams {
  void* output;       // [rows, width]
  const void* input;  // [rows, 2 · width]: what the activation takes, then what it gates
  long output_stride;
  long input_stride;
  long rows;
  int width;
  int lanes_log2;  // 2^lanes_log2 lanes of a block share a row; the block has blockDim.x / lanes rows
  int chunks;      // blocks that share a row
};

}  // namespace sglk
