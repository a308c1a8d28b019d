// Which moe_align kernels for which shape: pure functions, tested on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

namespace sglk::moe_align {

enum IdType { kI32, kI64 };
enum Kernel { kSingle, kCount, kPlace };

struct Shape {
  const char* name;
};
constexpr Shape kShapes[] = {{"single"}, {"count"}, {"place"}};
constexpr int kShapeCount = std::size(kShapes);
constexpr int kKernelCount = 2 * kShapeCount;

constexpr int kThreads = 1024;
// Up to here every block counts all choices: 16 loads a thread take less time than a second launch.
constexpr int64_t kSingleChoices = 16384;
constexpr int64_t kSinglePlacers = 4;
// Every block of kPlace adds up the counts of all segments; kSingle needs no more blocks to fill the output.
constexpr int64_t kMaxBlocks = 128;
constexpr int kStaticShared = 1024;  // bytes that the kernels have besides, at most

struct Choice {
  int placers;      // warps of a block that place; 0: the buckets do not fit into shared memory
  int64_t segment;  // choices of a block, a multiple of 32 · placers; 32 · placers for kSingle
  int64_t blocks;   // of all kernels; those of kSingle may be more than the segments
  int64_t shared;   // bytes of kSingle and kPlace: a counter per placer and bucket, and two per bucket
  bool is_single;   // kSingle, else kCount and kPlace
};

constexpr int64_t shared_bytes(int64_t placers, int64_t buckets) { return (placers + 2) * buckets * 4; }

// choices and buckets are at least 1; filled: places that have to be filled with something;
// shared_limit: bytes of shared memory that a block may have.
inline Choice choose(int64_t choices, int64_t buckets, int64_t filled, int64_t shared_limit) {
  const bool is_single = choices <= kSingleChoices;
  int64_t placers = is_single ? kSinglePlacers : kThreads / 32;
  while (placers > 0 && shared_bytes(placers, buckets) > shared_limit - kStaticShared) placers /= 2;
  if (placers == 0) return {0, 0, 0, 0, is_single};
  const int64_t rows = (choices + 32 * placers - 1) / (32 * placers);
  const int64_t rows_a_block = is_single ? 1 : (rows + kMaxBlocks - 1) / kMaxBlocks;
  const int64_t segments = (rows + rows_a_block - 1) / rows_a_block;
  const int64_t fillers = std::min((filled + kThreads - 1) / kThreads, kMaxBlocks);
  return {static_cast<int>(placers), rows_a_block * 32 * placers,
          is_single ? std::max(segments, fillers) : segments, shared_bytes(placers, buckets), is_single};
}

inline int kernel_index(IdType type, int kernel) { return int{type} * kShapeCount + kernel; }

inline std::string kernel_name(int index) {
  static constexpr const char* kTypeNames[] = {"i32", "i64"};
  return std::string("moe_align_block_size_") + kTypeNames[index / kShapeCount] + "_" +
         kShapes[index % kShapeCount].name;
}

}  // namespace sglk::moe_align
