// Which repacking kernel for which packing: pure functions, tested on the CPU.
#pragma once

#include <cstdint>
#include <iterator>
#include <string>

namespace sglk::marlin_repack {

enum Source { kAwq, kGptq, kGptqPermuted };

constexpr int kMaxThreads = 128;
constexpr int kWarps = kMaxThreads / 32;

struct Kernel {
  const char* name;
  int tiles;  // of a warp, side by side
};
constexpr Kernel kKernels[] = {
    {"marlin_repack_awq_4", 4},  {"marlin_repack_awq_8", 2},           {"marlin_repack_gptq_4", 4},
    {"marlin_repack_gptq_8", 2}, {"marlin_repack_gptq_permuted_4", 1}, {"marlin_repack_gptq_permuted_8", 1},
};
constexpr int kKernelCount = std::size(kKernels);

struct Choice {
  int kernel;
  int chunks;  // blocks that share a row of tiles
  int64_t blocks;
};

// size_k: of all experts together. bits: 4 or 8.
inline Choice choose(Source source, int bits, int64_t size_k, int64_t size_n) {
  const int kernel = 2 * source + (bits == 8 ? 1 : 0);
  const int64_t per_block = kWarps * kKernels[kernel].tiles;
  const int64_t chunks = (size_n / 64 + per_block - 1) / per_block;
  return {kernel, static_cast<int>(chunks), chunks * (size_k / 16)};
}

inline std::string kernel_name(int index) { return kKernels[index].name; }

}  // namespace sglk::marlin_repack
