// Which Marlin GEMM kernel, into how many blocks its work is cut, and in which boxes sm_90a copies it: pure
// functions, tested on the CPU.
#pragma once

#include <algorithm>
#include <climits>
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
  int least = 0;  // units of a block from which it is faster than the one before
};
// The GEMM kernels of an element type, per sort of weights by rising tile, and `gather`. Of several for as
// many tokens the later have deeper pipelines. `least` as measured on an H200, 2026-11-29.
constexpr Shape kShapes[] = {
    {"u4_m8", kUint4, false, kTile8},
    {"u4_m8_deep", kUint4, false, kTile8Deep, 24},
    {"u4_m8_group", kUint4, false, kTile8Group, 16},
    {"u4_m8_long", kUint4, false, kTile8Long, 20},
    {"u4_m8_narrow", kUint4, false, kTile8Narrow, 16},
    {"u4_m8_narrow_long", kUint4, false, kTile8NarrowLong, 40},
    {"u4_m16", kUint4, false, kTile16},
    {"u4_m16_deep", kUint4, false, kTile16Deep, 8},
    {"u4_m16_long", kUint4, false, kTile16Long, 10},
    {"u4_m32", kUint4, false, kTile32},
    {"u4_m32_deep", kUint4, false, kTile32Deep, 8},
    {"u4_m32_group", kUint4, false, kTile32Group},
    {"u4_m32_long", kUint4, false, kTile32Long, 8},
    {"u4_m64", kUint4, false, kTile64},
    {"u4_m64_group", kUint4, false, kTile64Group},
    {"u4_m64_wide", kUint4, false, kTile64Wide, 50},
    {"u4_m128", kUint4, false, kTile128, 80},  // whose sums, 128 KB, take long to hand over
    {"u4_m128_long", kUint4, false, kTile128Long, 20},
    {"u8_m16", kUint8, false, kTile16Byte},
    {"u8_m64", kUint8, false, kTile64Byte},
    {"fp8_m16", kFloat8, false, kTile16Byte},
    {"fp8_m64", kFloat8, false, kTile64Byte},
    {"u4_act_order_m64", kUint4, true, kTile64Order},
    {"u8_act_order_m64", kUint8, true, kTile64OrderByte},
    {"gather", kWeightTypes, false, {}},
};
constexpr int kShapeCount = std::size(kShapes);
constexpr int kGather = kShapeCount - 1;

// The kernels of sm_90a, for 4-bit weights without act-order.
struct Sm90Shape {
  const char* name;
  Sm90Tile tile;
  int least = 0, most = INT_MAX;  // units of a block between which it is faster than the one before
};
// Narrow: a unit of half the weights takes all its tokens. Up to 41 units of a block the smaller parts are
// worth that (16 tokens 3 to 8 % less); with 61, 5120 × 25600, it draws more power, of which such a layer
// takes all there is: 16 tokens 22.1 us for 20.6 in bench_ops, though 18.8 for 19.4 while the clock is high
// (H200, 2026-11-30).
constexpr int kNarrowMost = 50;
// Of 128 tokens handing the sums over, 128 KB a block, must be little: with 19 units of a block twice as many
// tiles of 64 were faster, with 24 the same, with 30 slower (H200, 2026-11-27).
constexpr Sm90Shape kSm90Shapes[] = {
    {"u4_m16_group", kSm90Tile16Group},
    {"u4_m16_narrow", kSm90Tile16Narrow, 0, kNarrowMost},
    {"u4_m32", kSm90Tile32},
    {"u4_m32_group", kSm90Tile32Group},
    {"u4_m32_narrow", kSm90Tile32Narrow, 0, kNarrowMost},
    {"u4_m64", kSm90Tile64},
    {"u4_m128", kSm90Tile128, 26},
};
constexpr int kSm90ShapeCount = std::size(kSm90Shapes);
constexpr int kKernelCount = 2 * (kShapeCount + kSm90ShapeCount);

enum Path { kAuto, kGeneric, kSm90, kPaths };

struct Choice {
  int shape;  // index into kShapes or kSm90Shapes
  TileGrid tiles;
  Partition partition;
  int tokens, columns;        // of a tile
  int threads, shared_bytes;  // of a block
};

constexpr int bits(WeightType weight) { return weight == kUint4 ? 4 : 8; }

inline int64_t tile_count(int64_t m, int64_t n, int tokens, int columns) {
  return (m + tokens - 1) / tokens * ((n + columns - 1) / columns);
}

// What the launch bounds by 2^31: the units of all tiles, and what it costs to begin them. (Those of the
// sm_90a kernels are fewer.)
inline int64_t total_units(const Shape& shape, int64_t m, int64_t n, int64_t k) {
  const Tile& tile = shape.tile;
  return tile_count(m, n, tile.m, tile.width) * (k / tile.unit() + kTileCost);
}

// Whether tiles may have so many columns: half of kTileN where five blocks or more would share one of these,
// whose parts are then half as many of half the size (o with 1 token 8.7 -> 8.2 us, 16 9.1 -> 8.8, 32 12.2 ->
// 10.6; H200, 2026-11-29). Twice as many where two blocks or fewer share a tile, for half of the tokens'
// traffic (gate_up with 64 tokens at the power limit 99.2 -> 95.9 us, else the same; H200, 2026-11-30).
inline bool suits_width(int width, int64_t n, int multiprocessors) {
  if (width > kTileN) return n / width * 2 >= multiprocessors;
  return width == kTileN || (n + kTileN - 1) / kTileN * 5 <= multiprocessors;
}

// The smallest tile that holds m rows, else the largest; of those that fit, that take groups of so many rows
// (0: a single group, or act-order), and that blocks have enough units for.
inline int choose_shape(int64_t m, int64_t n, int64_t k, WeightType weight, bool is_act_order, int64_t group,
                        int multiprocessors, int shared_memory) {
  int best = -1;
  for (int i = 0; i < kGather; ++i) {
    const auto& [name, of_weight, orders, tile, least] = kShapes[i];
    if (of_weight != weight || orders != is_act_order || (tile.group != 0 && tile.group != group) ||
        tile.shared_bytes(bits(weight)) > shared_memory || !suits_width(tile.width, n, multiprocessors) ||
        total_units(kShapes[i], m, n, k) < int64_t{least} * multiprocessors) {
      continue;
    }
    if (best < 0 || tile.m == kShapes[best].tile.m ||
        (kShapes[best].tile.m < m && tile.m > kShapes[best].tile.m)) {
      best = i;
    }
  }
  return best;
}

// Of a tile of kTileN columns, that a block has at most where tiles are shared evenly. With more, a block
// that hands its sums over between two tiles does not lose much by it.
constexpr int kEvenRows = 2048;

// How tiles are cut into pieces, in units.
struct Cutting {
  int unit;         // rows
  int columns;      // of a tile
  int cost, lead;   // as kTileCost, kTileLead
  int least;        // of a piece
  bool has_direct;  // whether the kernel knows direct tiles
};

// The rows of a tile that each block must have of those beyond the full waves, for all of these to be taken
// whole: blocks of the list are at different rows at once, which the L2 does not hold (down with 1024 tokens,
// 5427 rows, 15 % less, in bench_ops 5 %, generic 8 %; with 1536 to 3072 2 to 6 %; gate_up with 128, 2637
// rows, 5 % more; H200, 2026-11-30).
constexpr int kRestRows = 4096;

// Pieces that end with tiles if they are short and that leaves few multiprocessors idle; whole tiles if the
// last wave is nearly full (97 % full: 6 to 10 % faster than pieces, 93 %: 6 % slower; H200, 2026-11-28);
// otherwise full waves whole, but for the last where the rest is short, and what is left in pieces.
inline Partition cut(int tiles, int k, const Cutting& cutting, int multiprocessors) {
  const auto& [unit, columns, cost, lead, least, has_direct] = cutting;
  const int tile_units = k / unit, sharers = multiprocessors / tiles;
  if (sharers > 1 && sharers * std::max(sharers, least) <= tile_units &&
      sharers * kEvenRows * kTileN >= k * columns && sharers * tiles * 10 >= multiprocessors * 9) {
    return Partition::even(tiles, tile_units, sharers, lead);
  }
  const int64_t waves = (int64_t{tiles} + multiprocessors - 1) / multiprocessors;
  const bool is_whole = (has_direct || waves == 1) && int64_t{tiles} * 100 >= waves * multiprocessors * 95;
  int direct = 0;
  if (has_direct) {
    const int full = tiles / multiprocessors, rest = tiles % multiprocessors;
    const bool is_short = int64_t{rest} * k < int64_t{kRestRows} * multiprocessors;
    direct = is_whole ? tiles : std::max(0, full - is_short) * multiprocessors;
  }
  const int pieces = is_whole ? tiles : std::max(1, (tiles - direct) * tile_units / least);
  return Partition::of(tiles, tile_units, cost, direct, std::min(multiprocessors, pieces));
}

inline TileGrid tile_grid(int64_t m, int64_t n, int tokens, int columns) {
  return TileGrid::of(static_cast<int>((m + tokens - 1) / tokens),
                      static_cast<int>((n + columns - 1) / columns));
}

// What a kernel of kShapes is launched with.
inline Choice arrange(int shape, int64_t m, int64_t n, int64_t k, int multiprocessors) {
  const Tile& tile = kShapes[shape].tile;
  const int bit_count = bits(kShapes[shape].weight), unit_bytes = tile.weight_bytes(bit_count);
  const TileGrid tiles = tile_grid(m, n, tile.m, tile.width);
  return {shape,
          tiles,
          cut(tiles.tiles(), static_cast<int>(k),
              {tile.unit(), tile.width, kTileCost * 8192 / unit_bytes, kTileLead * 8192 / unit_bytes,
               tile.k_teams, has_direct(tile.m, bit_count == 4, kShapes[shape].is_act_order)},
              multiprocessors),
          tile.m,
          tile.width,
          tile.threads(),
          tile.shared_bytes(bit_count)};
}

// shared_memory: bytes that a block may have. m, n, k > 0, n a multiple of 64, k of 128, total_units < 2^31.
inline Choice choose(int64_t m, int64_t n, int64_t k, WeightType weight, bool is_act_order, int64_t group,
                     int multiprocessors, int shared_memory) {
  return arrange(choose_shape(m, n, k, weight, is_act_order, group, multiprocessors, shared_memory), m, n, k,
                 multiprocessors);
}

inline bool has_sm90_path(int compute_capability, WeightType weight, bool is_act_order) {
  return compute_capability == 90 && weight == kUint4 && !is_act_order;
}
// group: as in choose_shape. Of 24 and 32 tokens it was 1 to 23 % faster than the generic path, in layers of
// 1024² to 51200 × 5120; of 9 and 16, with groups of 128 rows, 3 to 17 % (H200, 2026-11-28).
inline bool prefers_sm90_path(int64_t m, int64_t group) { return m > 16 || (m > 8 && group == 128); }

// The smallest tile that holds m, else the largest; of those for as many tokens the last. Of those that suit
// the groups and the layer.
inline int choose_sm90_shape(int64_t m, int64_t n, int64_t k, int64_t group, int multiprocessors) {
  int shape = -1;
  for (int i = 0; i < kSm90ShapeCount; ++i) {
    const auto& [name, tile, least, most] = kSm90Shapes[i];
    const int64_t units = tile_count(m, n, tile.tokens, tile.width) * (k / kSm90Unit);
    if ((tile.group != 0 && tile.group != group) || !suits_width(tile.width, n, multiprocessors) ||
        units < int64_t{least} * multiprocessors || units > int64_t{most} * multiprocessors) {
      continue;
    }
    if (shape < 0 || kSm90Shapes[shape].tile.tokens < m || kSm90Shapes[shape].tile.tokens == tile.tokens) {
      shape = i;
    }
  }
  return shape;
}

// What a kernel of kSm90Shapes is launched with.
inline Choice arrange_sm90(int shape, int64_t m, int64_t n, int64_t k, int multiprocessors) {
  const Sm90Tile& tile = kSm90Shapes[shape].tile;
  const TileGrid tiles = tile_grid(m, n, tile.tokens, tile.width);
  const int narrow = kTileN / tile.width;
  return {shape,
          tiles,
          cut(tiles.tiles(), static_cast<int>(k),
              {kSm90Unit, tile.width, kSm90TileCost * narrow, kSm90TileLead * narrow, 1,
               has_direct(tile.tokens, true, false)},
              multiprocessors),
          tile.tokens,
          tile.width,
          tile.threads(),
          tile.shared_bytes()};
}

inline Choice choose_sm90(int64_t m, int64_t n, int64_t k, int64_t group, int multiprocessors) {
  return arrange_sm90(choose_sm90_shape(m, n, k, group, multiprocessors), m, n, k, multiprocessors);
}

// A matrix, and the boxes in which the copy engine copies it.
struct BoxedMatrix {
  const void* data;
  int element_bytes;
  int64_t rows, columns, row_bytes;
  int box_rows, box_columns;
  bool is_swizzled = false;  // by 128 bytes
};
// By the maps of Sm90Params, which says what they hold.
struct Sm90Matrices {
  BoxedMatrix tokens, weights, scales, zeros;
};
inline Sm90Matrices sm90_matrices(const Params& p, const Sm90Tile& tile) {
  const int64_t n = p.n, token_bytes = (p.m > 1 ? int64_t{p.a_stride} : p.k) * 2;
  const int unit_groups = unit_groups_of(p.group_shift);
  return {{p.a, 2, p.m, p.k, token_bytes, tile.tokens, 64, true},
          {p.weight, 8, p.k / 16, n, n * 8, kSm90Rows, tile.width},
          {p.scales, 2, p.groups, n, n * 2, unit_groups, tile.width},
          {p.zeros, 4, p.groups, n / 8, n / 2, unit_groups, tile.width / 8}};
}

inline int kernel_index(ElementType type, int shape) { return int{type} * kShapeCount + shape; }
inline int sm90_kernel_index(ElementType type, int shape) {
  return 2 * kShapeCount + int{type} * kSm90ShapeCount + shape;
}

inline std::string kernel_name(int index) {
  static constexpr const char* kTypeNames[] = {"bf16_", "f16_"};
  const int sm90 = index - 2 * kShapeCount;
  if (sm90 >= 0) {
    return std::string("marlin_gemm_sm90_") + kTypeNames[sm90 / kSm90ShapeCount] +
           kSm90Shapes[sm90 % kSm90ShapeCount].name;
  }
  return std::string("marlin_gemm_") + kTypeNames[index / kShapeCount] + kShapes[index % kShapeCount].name;
}

}  // namespace sglk::marlin_gemm
