// Parameters of the GPTQ kernels, shared by host and device.
#pragma once

namespace sglk {

// All contiguous, but for the rows of a. The kernels of one family take the same parameters; each says what
// it reads. `bits` is part of a kernel's name.
struct GptqParams {
  void* output;             // gemm, reduce: fp16 [m, n]; shuffle: unsigned [k · bits / 32, n]
  float* partial;           // [splits, m, n]: what the splits of K add up to, each; null: there is one split
  const void* a;            // fp16 [m, k], row stride a_stride
  const unsigned* qweight;  // [k · bits / 32, n]: a column's values follow each other bit by bit
  const unsigned* qzeros;   // [groups, n · bits / 32]: zero point − 1, along n
  const void* scales;       // fp16 [groups, n], aligned to 2 bytes
  const int* perm;          // [k]: row k of qweight belongs to column perm[k] of a; null: k
  const int* g_idx;         // [k]: the group of a row; null: k / group_size
  long a_stride;
  int m, n, k;
  int groups;
  int group_size;
  int splits;           // of K
  int units_per_split;  // 32 rows each
  int row_blocks;       // blocks along m
  int column_blocks;    // blocks along n
  int is_a_aligned;     // rows of a begin at multiples of 16 bytes, and k % 8 = 0
};

}  // namespace sglk
