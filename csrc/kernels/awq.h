// Parameters of the AWQ kernels, shared by host and device.
#pragma once

namespace sglk {

// All contiguous.
struct AwqParams {
  void* output;             // [rows, 8 · words], aligned to 16 bytes
  const unsigned* qweight;  // [rows, words]
  const void* scales;       // [groups, 8 · words], dtype of output
  const unsigned* qzeros;   // [groups, words]
  long rows;                // the input features (K)
  int words;                // an eighth of the output features (N)
  int group_size;           // rows / groups
  int chunks;               // blocks that share rows
};

}  // namespace sglk
