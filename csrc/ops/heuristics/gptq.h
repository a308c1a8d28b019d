// Which GPTQ kernel for which shape: pure functions, tested on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

namespace sglk::gptq {

constexpr int kMaxThreads = 128;
constexpr int kBits[] = {2, 3, 4, 8};
constexpr const char* kBitsNames[] = {"2", "3", "4", "8"};
constexpr int kBitsCount = std::size(kBits);

struct Shape {
  const char* name;
  int rows;       // of a block's output
  int blocks;     // wanted on a multiprocessor
  int min_units;  // of 32 rows of K that are worth a block
};
constexpr Shape kShapes[] = {{"rows_1", 1, 8, 2}, {"rows_4", 4, 8, 4}, {"tile", 64, 2, 4}};
constexpr int kShapeCount = std::size(kShapes);

constexpr int kShuffle = kBitsCount * 2 * kShapeCount;  // the first of one for each kBits
constexpr int kReduce = kShuffle + kBitsCount;
constexpr int kCopy = kReduce + 1;
constexpr int kKernelCount = kCopy + 1;

struct Choice {
  int shape;            // index into kShapes
  int units_per_split;  // of K
  int splits;
  int row_blocks, column_blocks;
  int64_t blocks;
};

constexpr int64_t ceil_divide(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// m, n, k: at least 1.
inline Choice choose(int64_t m, int64_t n, int64_t k, int multiprocessors) {
  const int shape = m <= 1 ? 0 : m <= 4 ? 1 : 2;
  const Shape& s = kShapes[shape];
  const int64_t row_blocks = ceil_divide(m, s.rows), column_blocks = ceil_divide(n, kMaxThreads);
  const int64_t units = ceil_divide(k, 32);
  // K is shared only by as many blocks as it takes to occupy the machine: each leaves its sums in memory.
  const int64_t wanted = int64_t{s.blocks} * multiprocessors / (row_blocks * column_blocks);
  const int64_t most = std::max<int64_t>(1, units / s.min_units);
  const int64_t units_per_split = ceil_divide(units, std::clamp<int64_t>(wanted, 1, most));
  const int64_t splits = ceil_divide(units, units_per_split);
  return {shape,
          static_cast<int>(units_per_split),
          static_cast<int>(splits),
          static_cast<int>(row_blocks),
          static_cast<int>(column_blocks),
          row_blocks * column_blocks * splits};
}

// The index into kBits, or −1.
inline int bits_index(int64_t bits) {
  const auto* const found = std::find(std::begin(kBits), std::end(kBits), bits);
  return found == std::end(kBits) ? -1 : static_cast<int>(found - std::begin(kBits));
}

inline int gemm_index(int bits_index, bool is_indexed, int shape) {
  return (2 * bits_index + (is_indexed ? 1 : 0)) * kShapeCount + shape;
}

inline std::string kernel_name(int index) {
  if (index == kCopy) return "gptq_copy";
  if (index == kReduce) return "gptq_reduce";
  if (index >= kShuffle) return std::string("gptq_shuffle_") + kBitsNames[index - kShuffle];
  return std::string("gptq_gemm_") + kBitsNames[index / kShapeCount / 2] +
         (index / kShapeCount % 2 == 0 ? "_grouped_" : "_indexed_") + kShapes[index % kShapeCount].name;
}

}  // namespace sglk::gptq
