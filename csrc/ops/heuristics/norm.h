// Which norm kernel for which shape: pure functions, tested on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

namespace sglk::norm {

enum Op { kRmsNorm, kFusedAddRmsNorm };
enum ElementType { kBf16, kF16 };
constexpr int kElementTypes = 2;

constexpr int kVectorSize = 8;  // elements of 16 bytes
constexpr int kRowsThreads = 128;

// In the order of preference for growing rows.
struct Shape {
  const char* name;
  int lanes;        // of a row; 0: the whole block
  int vectors;      // of a thread; 0: any number of single elements
  int max_threads;  // the kernel's launch bound
};
constexpr Shape kShapes[] = {
    {"rows_4x1", 4, 1, 128},   {"rows_8x1", 8, 1, 128},   {"rows_16x1", 16, 1, 128},
    {"rows_32x1", 32, 1, 128}, {"rows_32x2", 32, 2, 128}, {"rows_32x4", 32, 4, 128},
    {"block_1", 0, 1, 1024},   {"block_2", 0, 2, 1024},   {"block_3", 0, 3, 512},
    {"block_4", 0, 4, 512},    {"block_8", 0, 8, 512},    {"any", 0, 0, 1024},
};
constexpr int kShapeCount = std::size(kShapes);
constexpr int kAny = kShapeCount - 1;
constexpr int kKernelCount = 2 * kElementTypes * kShapeCount;

struct Choice {
  int shape;    // index into kShapes
  int threads;  // of a block
  int64_t blocks;
};

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// is_aligned: every pointer and row stride is a multiple of 16 bytes.
inline Choice choose(int64_t tokens, int64_t hidden, bool is_aligned) {
  const int64_t vectors = hidden / kVectorSize;
  // Measured on an H200 (2026-11-23) with rows of 5120: two vectors a thread while every row has a place on
  // the machine at once, three from then on; one and four are behind at either end.
  const int preferred_threads = tokens <= 256 ? 512 : 256;
  int fallback = kAny;
  if (is_aligned && hidden % kVectorSize == 0) {
    for (int i = 0; i < kAny; ++i) {
      const Shape& shape = kShapes[i];
      if (shape.lanes > 0) {
        if (vectors > shape.lanes * shape.vectors) continue;
        const int rows = kRowsThreads / shape.lanes;
        return {i, kRowsThreads, (tokens + rows - 1) / rows};
      }
      const int64_t threads = round_up((vectors + shape.vectors - 1) / shape.vectors, 32);
      if (threads > shape.max_threads) continue;
      if (threads <= preferred_threads) return {i, static_cast<int>(threads), tokens};
      fallback = i;
    }
  }
  const int64_t per_thread = fallback == kAny ? 1 : kShapes[fallback].vectors * kVectorSize;
  const int64_t threads = std::min<int64_t>(1024, round_up((hidden + per_thread - 1) / per_thread, 32));
  return {fallback, static_cast<int>(threads), tokens};
}

inline int kernel_index(Op op, ElementType type, int shape) {
  return (int{op} * kElementTypes + int{type}) * kShapeCount + shape;
}

inline std::string kernel_name(int index) {
  static constexpr const char* kOpNames[] = {"rmsnorm", "fused_add_rmsnorm"};
  static constexpr const char* kTypeNames[] = {"bf16", "f16"};
  return std::string(kOpNames[index / kShapeCount / kElementTypes]) + "_" +
         kTypeNames[index / kShapeCount % kElementTypes] + "_" + kShapes[index % kShapeCount].name;
}

}  // namespace sglk::norm
