// Which rope kernel for which shape: pure functions, tested on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

namespace sglk::rope {

enum Style { kNeox, kInterleaved };
enum ElementType { kBf16, kF16 };
constexpr int kElementTypes = 2;

struct Shape {
  const char* name;
  int pairs;   // of a thread and head
  int unroll;  // heads that a thread loads before it rotates the first
};
constexpr Shape kShapes[] = {{"vector_1", 8, 1}, {"vector_3", 8, 3}, {"element_1", 1, 1}};
constexpr int kShapeCount = std::size(kShapes);
constexpr int kKernelCount = 2 * kElementTypes * kShapeCount;
constexpr int kMaxThreads = 512;
constexpr int kMaxRotaryDim = 2 * kMaxThreads;  // a head's pairs fit one block, one pair a thread

struct Choice {
  int shape;            // index into kShapes
  int threads;          // of a block
  int lanes;            // threads that share a head
  int heads_per_block;  // heads of a token that a block takes
  int head_blocks;      // blocks that share a token
};

// heads: of queries and keys together. is_aligned: every pointer, stride, head_size and half of rotary_dim is
// a multiple of 16 bytes.
inline Choice choose(int64_t tokens, int heads, int rotary_dim, bool is_aligned, int multiprocessors) {
  // Measured on an H200 (2026-11-23): while blocks are scarce, small ones that share a token; then one block
  // a token, which reads the token's angles once.
  const bool is_small = tokens < 8 * multiprocessors;
  const int shape = !is_aligned ? 2 : is_small ? 0 : 1;
  const int lanes = rotary_dim / 2 / kShapes[shape].pairs;
  const int unroll = kShapes[shape].unroll;
  const int abreast =
      std::max(1, (is_small ? 192 : kMaxThreads) / lanes);  // heads that the threads cover at once
  const int head_blocks = is_small ? (heads + abreast * unroll - 1) / (abreast * unroll) : 1;
  const int per_block = (heads + head_blocks - 1) / head_blocks;
  const int step = std::min(abreast, (per_block + unroll - 1) / unroll);
  const int threads = std::min(kMaxThreads, (step * lanes + 31) / 32 * 32);
  return {shape, threads, lanes, per_block, (heads + per_block - 1) / per_block};
}

inline int kernel_index(Style style, ElementType type, int shape) {
  return (int{style} * kElementTypes + int{type}) * kShapeCount + shape;
}

inline std::string kernel_name(int index) {
  static constexpr const char* kStyleNames[] = {"neox", "interleaved"};
  static constexpr const char* kTypeNames[] = {"bf16", "f16"};
  return std::string("rope_") + kStyleNames[index / kShapeCount / kElementTypes] + "_" +
         kTypeNames[index / kShapeCount % kElementTypes] + "_" + kShapes[index % kShapeCount].name;
}

}  // namespace sglk::rope
