// Parameters of the grammar kernels, shared by host and device.
#pragma once

namespace sglk {

// Strides are in elements. Every row is contiguous.
struct GrammarParams {
  void* logits;         // [rows, vocabulary]
  const int* bitmask;   // [rows, words]: bit t % 32 of word t / 32 says whether token t is allowed
  const void* indices;  // [count] int32 or int64, the rows to mask; null: all
  long logits_stride;
  long bitmask_stride;
  long rows;   // an index outside is skipped
  int tokens;  // min(vocabulary, 32 · words): the rest stays as it is
  int chunks;  // blocks that share a row
  bool is_index_64;
};

}  // namespace sglk
