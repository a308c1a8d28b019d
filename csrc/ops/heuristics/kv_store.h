// Which kv_store kernel for which shape: pure functions, tested on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

namespace sglk::kv_store {

enum Op { kStore, kDowncastBf16, kDowncastF16 };
constexpr int kMaxThreads = 128;

struct Shape {
  const char* name;
  bool is_vector;  // 16 bytes at a time, else single elements (bytes, where rows are only copied)
};
constexpr Shape kShapes[] = {{"vector", true}, {"element", false}};
constexpr int kShapeCount = std::size(kShapes);
constexpr int kKernelCount = 3 * kShapeCount;

struct Choice {
  int lanes_log2;  // 2^lanes_log2 threads share a token
  int64_t blocks;  // of kMaxThreads threads
};

// units: vectors, or elements, of the wider of a token's two rows; at least 1.
inline Choice choose(int64_t tokens, int64_t units) {
  int lanes_log2 = 0;
  while ((1 << lanes_log2) < kMaxThreads && (1 << lanes_log2) < units) ++lanes_log2;
  const int64_t per_block = kMaxThreads >> lanes_log2;
  return {lanes_log2, (tokens + per_block - 1) / per_block};
}

inline int kernel_index(Op op, int shape) { return int{op} * kShapeCount + shape; }

inline std::string kernel_name(int index) {
  static constexpr const char* kOpNames[] = {"store_kv_cache", "downcast_fp8_bf16", "downcast_fp8_f16"};
  return std::string(kOpNames[index / kShapeCount]) + "_" + kShapes[index % kShapeCount].name;
}

}  // namespace sglk::kv_store
