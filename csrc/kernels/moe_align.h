// Parameters of the moe_align kernels, shared by host and device.
#pragma once

namespace sglk {

// Everything is contiguous. A choice is an element of ids, taken flat; its bucket is its expert + 1.
struct MoeAlignParams {
  const void* ids;  // [choices] int32 or int64
  int* sorted;      // [sorted_size]
  int* labels;      // [labels_size]
  int* total;       // [1]
  int* counts;  // [segments, buckets]: the choices of each segment in each bucket; null where there is one
  int choices;
  int sorted_size;
  int labels_size;
  int buckets;
  int block_size;
  int segment;     // choices of a block, a multiple of its threads
  bool is_padded;  // sorted is filled with the number of choices where no choice comes to be
};

}  // namespace sglk
