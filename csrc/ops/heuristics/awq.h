// Which AWQ kernel for which shape: pure functions, tested on the CPU.
#pragma once

#include <cstdint>
#include <iterator>
#include <string>

namespace sglk::awq {

enum ElementType { kF16, kBf16 };
constexpr int kMaxThreads = 128;

struct Shape {
  const char* name;
  int rows;  // of a thread
};
constexpr Shape kShapes[] = {{"rows_4", 4}, {"rows_8", 8}, {"rows_8_streaming", 8}, {"any", 1}};
constexpr int kShapeCount = std::size(kShapes);
constexpr int kAny = kShapeCount - 1;
constexpr int kKernelCount = 2 * kShapeCount;

struct Choice {
  int shape;   // index into kShapes
  int chunks;  // blocks that share rows
  int64_t blocks;
};

// words: of a row, 8 columns each. is_aligned: scales begin at a multiple of 16 bytes.
inline Choice choose(int64_t rows, int64_t words, int64_t group_size, bool is_aligned, int multiprocessors) {
  const int64_t chunks = (words + kMaxThreads - 1) / kMaxThreads;
  int shape = kAny;
  if (is_aligned && group_size % 4 == 0) {
    // Eight rows read a group's scales half as often as four, once all multiprocessors have work. An output
    // larger than the L2 (50 MB on an H200, 96 on an RTX 5090) only drives other data out of it.
    const bool is_large = chunks * (rows / 8) >= int64_t{16} * multiprocessors;
    const bool is_streaming = rows * words * 16 > (int64_t{60} << 20);
    shape = !is_large || group_size % 8 != 0 ? 0 : is_streaming ? 2 : 1;
  }
  return {shape, static_cast<int>(chunks), chunks * (rows / kShapes[shape].rows)};
}

inline int kernel_index(ElementType type, int shape) { return int{type} * kShapeCount + shape; }

inline std::string kernel_name(int index) {
  static constexpr const char* kTypeNames[] = {"f16", "bf16"};
  return std::string("awq_dequantize_") + kTypeNames[index / kShapeCount] + "_" +
         kShapes[index % kShapeCount].name;
}

}  // namespace sglk::awq
