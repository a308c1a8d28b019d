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
// Single elements held in registers win for short rows (500: 8 us against 12), not for long ones (5121 with a
// residual: 119 us against 92); H200, 2026-11-24.
constexpr int kMaxElementHidden = 2048;

// In the order of preference for growing rows.
struct Shape {
  const char* name;
  int lanes;        // of a row; 0: the whole block
  int width;        // elements of one access: a vector of 16 bytes, or 1
  int accesses;     // of a thread; 0: any number
  int max_threads;  // the kernel's launch bound
};
constexpr Shape kShapes[] = {
    {"rows_4x1", 4, kVectorSize, 1, 128},
    {"rows_8x1", 8, kVectorSize, 1, 128},
    {"rows_16x1", 16, kVectorSize, 1, 128},
    {"rows_32x1", 32, kVectorSize, 1, 128},
    {"rows_32x2", 32, kVectorSize, 2, 128},
    {"rows_32x4", 32, kVectorSize, 4, 128},
    {"block_1", 0, kVectorSize, 1, 1024},
    {"block_2", 0, kVectorSize, 2, 1024},
    {"block_3", 0, kVectorSize, 3, 512},
    {"block_4", 0, kVectorSize, 4, 512},
    {"block_8", 0, kVectorSize, 8, 512},
    {"element_8", 0, 1, 8, 1024},
    {"any", 0, 1, 0, 1024},
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
  const int width = is_aligned && hidden % kVectorSize == 0 ? kVectorSize : 1;
  const int64_t accesses = hidden / width;
  // Measured on an H200 (2026-11-23) with rows of 5120: two vectors a thread while every row has a place on
  // the machine at once, three from then on; one and four are behind at either end.
  const int preferred_threads = tokens <= 256 ? 512 : 256;
  Choice choice{kAny, static_cast<int>(std::min<int64_t>(kShapes[kAny].max_threads, round_up(hidden, 32))),
                tokens};
  for (int i = 0; i < kAny; ++i) {
    const Shape& shape = kShapes[i];
    if (shape.width != width || (width == 1 && hidden > kMaxElementHidden)) continue;
    if (shape.lanes > 0) {
      if (accesses > shape.lanes * shape.accesses) continue;
      const int rows = kRowsThreads / shape.lanes;
      return {i, kRowsThreads, (tokens + rows - 1) / rows};
    }
    const int64_t threads = round_up((accesses + shape.accesses - 1) / shape.accesses, 32);
    if (threads > shape.max_threads) continue;
    choice = {i, static_cast<int>(threads), tokens};
    if (threads <= preferred_threads) break;
  }
  return choice;
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
