// Which grammar kernel for which shape: pure functions, tested on the CPU.
#pragma once

#include <cstdint>
#include <iterator>
#include <string>

namespace sglk::grammar {

enum Op { kApplyTokenBitmask };
enum ElementType { kBf16, kF16, kF32 };
constexpr int kElementTypes = 3;
constexpr int kThreads = 128;

struct Shape {
  const char* name;
  bool is_vector;  // 16 bytes at a time, else single elements
};
constexpr Shape kShapes[] = {{"vector", true}, {"element", false}};
constexpr int kShapeCount = std::size(kShapes);
constexpr int kKernelCount = kElementTypes * kShapeCount;

struct Choice {
  int shape;   // index into kShapes
  int chunks;  // blocks that share a row
  int64_t blocks;
};

// is_aligned: the logits and their row stride are multiples of 16 bytes. A last vector may be part of a row.
inline Choice choose(int64_t rows, int64_t tokens, int element_size, bool is_aligned) {
  const int64_t per_block = int64_t{kThreads} * (is_aligned ? 16 / element_size : 1);
  const int64_t chunks = (tokens + per_block - 1) / per_block;
  return {is_aligned ? 0 : 1, static_cast<int>(chunks), rows * chunks};
}

inline int kernel_index(Op, ElementType type, int shape) { return int{type} * kShapeCount + shape; }

inline std::string kernel_name(int index) {
  static constexpr const char* kTypeNames[] = {"bf16", "f16", "f32"};
  return std::string("apply_token_bitmask_") + kTypeNames[index / kShapeCount] + "_" +
         kShapes[index % kShapeCount].name;
}

}  // namespace sglk::grammar
