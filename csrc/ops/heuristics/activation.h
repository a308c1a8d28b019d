// Which activation kernel for which shape: pure functions, tested on the CPU.
#pragma once

#include <cstdint>
#include <iterator>
#include <string>

namespace sglk::activation {

enum Op { kSilu, kGelu, kGeluTanh };
enum ElementType { kBf16, kF16, kF32 };
constexpr int kElementTypes = 3;

struct Shape {
  const char* name;
  bool is_vector;  // 16 bytes at a time, else single elements
  int vectors;     // of a thread
};
constexpr Shape kShapes[] = {{"vector_1", true, 1}, {"vector_2", true, 2}, {"element_4", false, 4}};
constexpr int kShapeCount = std::size(kShapes);
constexpr int kKernelCount = 3 * kElementTypes * kShapeCount;

struct Choice {
  int shape;       // index into kShapes
  int threads;     // of a block
  int lanes_log2;  // 2^lanes_log2 threads share a row
  int chunks;      // blocks that share a row
  int64_t blocks;
};

// is_aligned: both pointers, both row strides and the width are multiples of 16 bytes.
inline Choice choose(int64_t rows, int64_t width, int element_size, bool is_aligned, int multiprocessors) {
  const int64_t vectors = is_aligned ? width * element_size / 16 : width;
  // Measured on an H200 (2026-11-23): two vectors a thread in small blocks are the fastest stream once the
  // machine is full many times over; before that one vector a thread, so that every multiprocessor has work.
  const bool is_stream = rows * vectors > int64_t{16} * 2048 * multiprocessors;
  const int shape = !is_aligned ? 2 : is_stream ? 1 : 0;
  const int threads = is_stream && is_aligned ? 64 : 128;
  const int64_t wanted = (vectors + kShapes[shape].vectors - 1) / kShapes[shape].vectors;
  int lanes_log2 = 0;
  while ((1 << lanes_log2) < threads && (1 << lanes_log2) < wanted) ++lanes_log2;
  const int64_t per_block = int64_t{kShapes[shape].vectors} << lanes_log2;
  const int64_t chunks = (vectors + per_block - 1) / per_block;
  const int64_t rows_per_block = threads >> lanes_log2;
  const int64_t blocks = chunks * ((rows + rows_per_block - 1) / rows_per_block);
  return {shape, threads, lanes_log2, static_cast<int>(chunks), blocks};
}

inline int kernel_index(Op op, ElementType type, int shape) {
  return (int{op} * kElementTypes + int{type}) * kShapeCount + shape;
}

inline std::string kernel_name(int index) {
  static constexpr const char* kOpNames[] = {"silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"};
  static constexpr const char* kTypeNames[] = {"bf16", "f16", "f32"};
  return std::string(kOpNames[index / kShapeCount / kElementTypes]) + "_" +
         kTypeNames[index / kShapeCount % kElementTypes] + "_" + kShapes[index % kShapeCount].name;
}

}  // namespace sglk::activation
