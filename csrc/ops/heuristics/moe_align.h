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

constexpr int kMaxThreads = 1024;
// One block places four rows of 32 choices a warp sooner than a second launch can start.
constexpr int64_t kSingleChoices = 4096;
// Every block adds up the counts of all segments.
constexpr int64_t kMaxSegments = 128;
constexpr int kStaticShared = 1024;  // bytes that the kernels have besides, at most

struct Choice {
  int threads;       // of a block; 0: the buckets do not fit into shared memory
  int64_t segment;   // choices of a block, a multiple of threads
  int64_t segments;  // blocks; 1: the kernel kSingle, else kCount and kPlace
  int64_t shared;    // bytes of kSingle and kPlace: a counter per warp and bucket, and two per bucket
};

constexpr int64_t shared_bytes(int64_t threads, int64_t buckets) { return (threads / 32 + 2) * buckets * 4; }

// choices and buckets are at least 1; shared_limit: bytes of shared memory that a block may have.
inline Choice choose(int64_t choices, int64_t buckets, int64_t shared_limit) {
  int64_t threads = kMaxThreads;
  while (threads >= 32 && shared_bytes(threads, buckets) > shared_limit - kStaticShared) threads /= 2;
  if (threads < 32) return {0, 0, 0, 0};
  const int64_t rows = (choices + threads - 1) / threads;
  const int64_t wanted = choices <= kSingleChoices ? 1 : std::min(rows, kMaxSegments);
  const int64_t segment = (rows + wanted - 1) / wanted * threads;
  return {static_cast<int>(threads), segment, (choices + segment - 1) / segment,
          shared_bytes(threads, buckets)};
}

inline int kernel_index(IdType type, int kernel) { return int{type} * kShapeCount + kernel; }

inline std::string kernel_name(int index) {
  static constexpr const char* kTypeNames[] = {"i32", "i64"};
  return std::string("moe_align_block_size_") + kTypeNames[index / kShapeCount] + "_" +
         kShapes[index % kShapeCount].name;
}

}  // namespace sglk::moe_align
