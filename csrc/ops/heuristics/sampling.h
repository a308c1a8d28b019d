// How the sampling kernels share a row and what scratch memory they take: pure functions, tested on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

namespace sglk::sampling {

enum Step { kClear, kHistogram, kMaximum, kSelect, kApply };
enum ElementType { kF32 };
constexpr int kSteps = 5;

struct Shape {
  const char* name;
  int elements;  // of a load
};
constexpr Shape kShapes[] = {{"vector", 4}, {"element", 1}};
constexpr int kShapeCount = 2;
constexpr int kKernelCount = kSteps * kShapeCount;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 2048;
constexpr int kMaxChunks = 64;       // the last block of a row holds 16 · 64 segments in shared memory
constexpr int kSegmentStep = 128;    // elements of a warp's vector load
constexpr int kMaxCapacity = 16384;  // a longer list is not kept: the last block walks the row instead

struct Choice {
  int shape;          // index into kShapes
  int chunks;         // blocks that share a row
  int segment;        // elements of a warp
  int capacity;       // of a row's list of candidates
  int fraction_bits;  // of fixed-point mass
};

constexpr int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// A row's mass is at most vocabulary · 2^(24 + fraction_bits), which stays below 2^62.
inline int fraction_bits(int64_t vocabulary) {
  int log2 = 0;
  while ((int64_t{1} << log2) < vocabulary) ++log2;
  return std::min(20, 62 - 24 - log2);
}

// rows and vocabulary are positive. is_aligned: pointers, row strides and the vocabulary in 16 bytes.
inline Choice choose(int64_t rows, int64_t vocabulary, bool is_aligned, int multiprocessors) {
  constexpr int kBlocksPerMultiprocessor = 4;  // what registers and shared memory let run at once, about
  const int64_t wanted = int64_t{kBlocksPerMultiprocessor} * multiprocessors / rows;
  const int64_t useful = divide_up(vocabulary, kWarps * kSegmentStep);
  const int64_t chunks = std::clamp<int64_t>(std::min(wanted, useful), 1, kMaxChunks);
  const int64_t steps = divide_up(divide_up(vocabulary, chunks * kWarps), kSegmentStep);
  const int64_t segment = steps * kSegmentStep;
  return {is_aligned ? 0 : 1, static_cast<int>(divide_up(vocabulary, segment * kWarps)),
          static_cast<int>(segment), static_cast<int>(std::min<int64_t>(vocabulary, kMaxCapacity)),
          fraction_bits(vocabulary)};
}

inline int kernel_index(Step step, ElementType, int shape) { return int{step} * kShapeCount + shape; }

inline std::string kernel_name(int index) {
  static constexpr const char* kStepNames[] = {"clear", "histogram", "maximum", "select", "apply"};
  return std::string("sampling_") + kStepNames[index / kShapeCount] + "_f32_" +
         kShapes[index % kShapeCount].name;
}

}  // namespace sglk::sampling
