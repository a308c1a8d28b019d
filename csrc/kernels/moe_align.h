// Parameters of the moe_align kernels, shared by host and device.
#pragma once

namespace sglk {

// Everything is contiguous. A choice is an element of ids, taken flat; its bucket is its expert + 1.
struct MoeAlignParams {
  const void* ids;  // [choices] int32 or int64
  int* sorted;      // [sorted_size]
  int* labels;      // [labels_size]
  int* total;       // [1]
  int* counts;  // [segments, buckets]: the choices of each segment in each bucket; null: a block counts all
  int choices;
  int sorted_size;
  int labels_size;
  int buckets;
  int block_size;
  int segment;     // choices that a block places
  int placers;     // warps of a block that place, segment / placers each, a multiple of 32
  bool is_padded;  // sorted is filled with the number of choices where no choice comes to be
};

}  // namespace sglk
