// Which merge kernel for which shape: pure functions, tested on the CPU.
#pragma once

#include <cstdint>
#include <iterator>
#include <string>

namespace sglk::merge {

enum Op { kMergeState, kMergeStateV2 };
enum ElementType { kBf16, kF16, kF32 };
constexpr int kElementTypes = 3;

struct Shape {
  const char* name;
  bool is_vector;  // 16 bytes at a time, else single elements
  int rows;        // of a thread
};
constexpr Shape kShapes[] = {
    {"vector_1", true, 1}, {"vector_2", true, 2}, {"stream_2", true, 2}, {"element_1", false, 1}};
constexpr int kShapeCount = std::size(kShapes);
constexpr int kKernelCount = 2 * kElementTypes * kShapeCount;

// An output well beyond any L2 (60 MB on an H200) does not displace what its reader could still find there.
constexpr int64_t kStreamingBytes = int64_t{128} << 20;

struct Choice {
  int shape;       // index into kShapes
  int threads;     // of a block
  int lanes_log2;  // 2^lanes_log2 threads of a warp share a row
  int64_t blocks;
};

// rows and dim are at least 1. is_aligned: every pointer of values and the row are multiples of 16 bytes.
inline Choice choose(int64_t rows, int64_t dim, int element_size, bool is_aligned, int multiprocessors) {
  const int64_t units = is_aligned ? dim * element_size / 16 : dim;
  // As for the gated activations: small blocks with more in flight a thread are the fastest stream once the
  // machine is full several times over; before that one row a thread, so that every multiprocessor has work.
  const bool is_full = rows * units > int64_t{8} * 2048 * multiprocessors;
  const bool is_streaming = rows * dim * element_size >= kStreamingBytes;
  const int shape = !is_aligned ? 3 : !is_full ? 0 : is_streaming ? 2 : 1;
  const int threads = kShapes[shape].rows == 2 ? 64 : 128;
  int lanes_log2 = 0;
  while (lanes_log2 < 5 && (1 << lanes_log2) < units) ++lanes_log2;
  const int64_t rows_per_block = int64_t{threads >> lanes_log2} * kShapes[shape].rows;
  return {shape, threads, lanes_log2, (rows + rows_per_block - 1) / rows_per_block};
}

inline int kernel_index(Op op, ElementType type, int shape) {
  return (int{op} * kElementTypes + int{type}) * kShapeCount + shape;
}

inline std::string kernel_name(int index) {
  static constexpr const char* kOpNames[] = {"merge_state", "merge_state_v2"};
  static constexpr const char* kTypeNames[] = {"bf16", "f16", "f32"};
  return std::string(kOpNames[index / kShapeCount / kElementTypes]) + "_" +
         kTypeNames[index / kShapeCount % kElementTypes] + "_" + kShapes[index % kShapeCount].name;
}

}  // namespace sglk::merge
