// Which Marlin GEMM kernel, and into how many blocks its work is cut: pure functions, tested on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

#include "kernels/marlin_gemm.h"

namespace sglk::marlin_gemm {

enum ElementType { kBf16, kF16 };
enum WeightType { kUint4, kUint8, kFloat8, kWeightTypes };

struct Shape {
  const char* name;
  WeightType weight;
  bool is_act_order;
  Tile tile;
};
// The GEMM kernels of an element type, per sort of weights by rising tile, then the two helpers.
constexpr Shape kShapes[] = {
    {"u4_m16", kUint4, false, kTile16},          {"u4_m32", kUint4, false, kTile32},
    {"u4_m64", kUint4, false, kTile64},          {"u4_m128", kUint4, false, kTile128},
    {"u8_m16", kUint8, false, kTile16Byte},      {"u8_m64", kUint8, false, kTile64Byte},
    {"fp8_m16", kFloat8, false, kTile16Byte},    {"fp8_m64", kFloat8, false, kTile64Byte},
    {"u4_act_order_m64", kUint4, true, kTile64}, {"u8_act_order_m64", kUint8, true, kTile64Byte},
    {"reduce", kWeightTypes, false, {}},         {"gather", kWeightTypes, false, {}},
};
constexpr int kShapeCount = std::size(kShapes);
constexpr int kReduce = kShapeCount - 2, kGather = kShapeCount - 1;
constexpr int kKernelCount = 2 * kShapeCount;

struct Choice {
  int shape;    // index into kShapes
  int m_tiles;  // tiles of the output
  int n_tiles;
  int tile_stages;  // stages of a tile
  int blocks;
  int shared_bytes;  // of a block
  bool is_split;     // some tiles are shared by blocks: partial sums, then `reduce`
};

constexpr int bits(WeightType weight) { return weight == kUint4 ? 4 : 8; }

// The stages of all tiles, which the launch bounds by 2^31.
inline int64_t total_stages(const Shape& shape, int64_t m, int64_t n, int64_t k) {
  const Tile& tile = shape.tile;
  return (m + tile.m - 1) / tile.m * ((n + kTileN - 1) / kTileN) * (k / tile.k);
}

// The smallest tile that holds m rows, else the largest.
inline int choose_shape(int64_t m, WeightType weight, bool is_act_order) {
  int best = -1;
  for (int i = 0; i < kReduce; ++i) {
    if (kShapes[i].weight != weight || kShapes[i].is_act_order != is_act_order) continue;
    best = i;
    if (kShapes[i].tile.m >= m) break;
  }
  return best;
}

// shared_memory: bytes that a block may have; a multiprocessor has 1 KB more, and each block costs 1 KB.
// m, n, k > 0, n a multiple of 64, k of 128, total_stages < 2^31.
inline Choice choose(int64_t m, int64_t n, int64_t k, WeightType weight, bool is_act_order,
                     int multiprocessors, int shared_memory) {
  Choice choice{};
  choice.shape = choose_shape(m, weight, is_act_order);
  const Tile& tile = kShapes[choice.shape].tile;
  choice.m_tiles = static_cast<int>((m + tile.m - 1) / tile.m);
  choice.n_tiles = static_cast<int>((n + kTileN - 1) / kTileN);
  choice.tile_stages = static_cast<int>(k / tile.k);
  choice.shared_bytes = tile.shared_bytes(bits(weight));
  const int resident =
      std::clamp((shared_memory + 1024) / (choice.shared_bytes + 1024), 1, tile.min_blocks) * multiprocessors;
  const int64_t tiles = int64_t{choice.m_tiles} * choice.n_tiles, total = tiles * choice.tile_stages;

  // Whole tiles while the last wave is nearly full; otherwise even pieces of at least two stages, which cost
  // the traffic of the partial sums.
  const int64_t waves = (tiles + resident - 1) / resident;
  const bool is_even = tiles * 100 >= waves * resident * 92;
  choice.blocks = static_cast<int>(
      is_even ? tiles : std::clamp<int64_t>(total / 2, 1, std::min<int64_t>(resident, total)));
  // Blocks begin on tile boundaries exactly if there are as many tiles, or a divisor of them.
  choice.is_split = tiles % choice.blocks != 0;
  return choice;
}

inline int kernel_index(ElementType type, int shape) { return int{type} * kShapeCount + shape; }

inline std::string kernel_name(int index) {
  static constexpr const char* kTypeNames[] = {"bf16", "f16"};
  return std::string("marlin_gemm_") + kTypeNames[index / kShapeCount] + "_" +
         kShapes[index % kShapeCount].name;
}

}  // namespace sglk::marlin_gemm
