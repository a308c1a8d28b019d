// Parameters and tile shapes of the Marlin GEMM kernels, known to host and device.
#pragma once

#include "marlin_gemm_partition.h"

namespace sglk::marlin_gemm {

constexpr int kTileN = 256;    // columns of most tiles
constexpr int kMinGroup = 32;  // rows of the smallest group
constexpr int kGatherThreads = 256;
constexpr int kMaxStride = 1 << 24;  // of a, in elements: threads step by up to 64 rows of it in 32 bits
constexpr int kMaxColumns = (1 << 25) - 1;  // threads step by up to 8 rows of 16 of them in 32 bits

// The tile of a block: m tokens × `width` columns. k_teams teams of warps share it and split its rows; a warp
// has all tokens and `columns` columns. A team copies its units, of `steps` × 16 rows, into a ring of its
// own. All of it fits 99 KB (sm_86, sm_89, sm_120), but for the "deep" ones, the "group" and "narrow" of 8
// tokens and the "long" of 32 tokens and less.
struct Tile {
  int m;
  int columns;  // of a warp: 64, or 32
  int k_teams;
  int steps;      // 2, 4 or 8
  int stages;     // units of a team in the ring, the one in use among them
  int batch;      // how many of a warp's sums of 16 columns × 8 tokens teams exchange between two barriers
  int group = 0;  // rows of all groups, of which there are several; 0: as they come
  int width = kTileN;

  SGLK_HOST_DEVICE constexpr int unit() const { return steps * 16; }
  SGLK_HOST_DEVICE constexpr int team_warps() const { return width / columns; }
  SGLK_HOST_DEVICE constexpr int threads() const { return 32 * team_warps() * k_teams; }
  SGLK_HOST_DEVICE constexpr int weight_bytes(int bits) const { return unit() * width * bits / 8; }
  SGLK_HOST_DEVICE constexpr int token_bytes() const { return m * unit() * 2; }
  SGLK_HOST_DEVICE constexpr int groups() const {  // of a unit at most
    return group == 0 ? unit() / kMinGroup : (unit() + group - 1) / group;
  }
  SGLK_HOST_DEVICE constexpr int scale_bytes() const { return groups() * width * 2; }
  SGLK_HOST_DEVICE constexpr int zero_bytes() const { return groups() * width / 2; }
  // Sums of tokens, one of each warp.
  SGLK_HOST_DEVICE constexpr int token_sum_bytes() const {
    return group == unit() && m == 16 ? m * team_warps() * 4 : 0;
  }
  SGLK_HOST_DEVICE constexpr int unit_bytes(int bits) const {  // a multiple of 256 (load_tokens)
    const int bytes = weight_bytes(bits) + token_bytes() + scale_bytes() + zero_bytes() + token_sum_bytes();
    return (bytes + 255) / 256 * 256;
  }
  SGLK_HOST_DEVICE constexpr int sum_bytes() const { return (k_teams - 1) * team_warps() * batch * 512; }
  SGLK_HOST_DEVICE constexpr int shared_bytes(int bits) const {
    return k_teams * stages * unit_bytes(bits) + sum_bytes();
  }
};

// As they were fastest on an H200, 2026-11-28.
constexpr Tile kTile8{8, 64, 4, 4, 2, 2};
constexpr Tile kTile8Deep{8, 64, 4, 4, 3, 4};
constexpr Tile kTile8Group{8, 64, 4, 4, 3, 4, 128};
constexpr Tile kTile8Long{8, 64, 4, 8, 2, 4, 128};
constexpr Tile kTile8Narrow{8, 64, 8, 4, 3, 4, 128, 128};
constexpr Tile kTile8NarrowLong{8, 64, 8, 8, 2, 4, 128, 128};
constexpr Tile kTile16{16, 64, 2, 4, 3, 8};
constexpr Tile kTile16Deep{16, 64, 4, 4, 2, 8};
constexpr Tile kTile16Long{16, 64, 4, 8, 2, 4, 128};
constexpr Tile kTile32{32, 32, 2, 4, 3, 4};
constexpr Tile kTile32Deep{32, 32, 2, 8, 2, 4};
constexpr Tile kTile32Group{32, 32, 2, 4, 3, 4, 128};
constexpr Tile kTile32Long{32, 32, 2, 8, 3, 4, 128};
constexpr Tile kTile64{64, 32, 2, 4, 2, 4};
constexpr Tile kTile64Group{64, 32, 2, 4, 2, 4, 128};
constexpr Tile kTile64Wide{64, 64, 1, 4, 3, 1, 128, 512};
constexpr Tile kTile128{128, 32, 1, 4, 3, 1};
constexpr Tile kTile128Long{128, 32, 1, 8, 2, 1, 128};
constexpr Tile kTile16Byte{16, 64, 2, 2, 4, 4};  // for weights of 8 bits
constexpr Tile kTile64Byte{64, 32, 2, 2, 3, 4};
constexpr Tile kTile64Order{64, 64, 2, 4, 2, 8};  // for act-order, whose scales take registers
constexpr Tile kTile64OrderByte{64, 64, 2, 2, 3, 8};

// Whether a kernel knows direct tiles (Partition): those for the largest m, whose tiles are many. To the
// others it is code that is in the way (64 tokens 1.5 % slower; H200, 2026-11-29).
SGLK_HOST_DEVICE constexpr bool has_direct(int tokens, bool is_int4, bool is_act_order) {
  return tokens >= (is_int4 && !is_act_order ? 128 : 64);
}

struct Params {
  const void* a;       // [m, k] fp16 or bf16, rows 16-byte aligned; what `gather` reads may be unaligned
  const void* weight;  // Marlin tiles: int32 [k / 16, n · bits / 2]
  const void* scales;  // [groups, n], permuted per 64 columns, or per 32 where groups == 1
  const void* zeros;   // int32 [groups, n / 8], permuted; null: 8
  const int* g_idx;    // [k]: the group of a row; act-order kernels only
  const int* perm;     // [k]: the column of a that goes with a row; `gather` only, null: the same
  const void* bias;    // [n], permuted per 32 columns; may be null
  void* out;           // [m, n]; `gather`: [m, k]
  float* partial;      // [blocks, m · width of a tile]: what a block has of a tile that an earlier one began
  int* arrivals;  // [blocks], zero before and after: how many blocks (sm_90a: flags, which) have written one
  long a_stride;  // elements
  long out_stride;  // elements
  int m, n, k;
  int groups;
  int group_shift;  // log2 of the pairs of steps in a group; 30 where groups == 1
  TileGrid tiles;
  Partition partition;  // of tiles of k / Tile::unit() units
};

// --- the kernels of sm_90a (marlin_gemm_sm90.cuh) ---

constexpr int kSm90Unit = 128;                              // rows
constexpr int kSm90TileCost = 2;                            // as kTileCost
constexpr int kSm90TileLead = 3;                            // as kTileLead
constexpr int kSm90Producers = 4;                           // threads that copy, of as many warps
constexpr int kSm90Rows = kSm90Unit / 16 / kSm90Producers;  // of weights of a unit, that one copies

// tokens × `width` columns, in stages of a unit. `teams` of a warpgroup for each 128 columns take turns with
// the units.
struct Sm90Tile {
  int tokens;
  int stages;  // a multiple of `teams`
  int teams;
  int group = 0;  // rows of all groups, of which there are several: a unit's, or 0: as they come
  int width = kTileN;

  SGLK_HOST_DEVICE constexpr int consumers() const { return width * teams; }    // threads that multiply
  SGLK_HOST_DEVICE constexpr int threads() const { return 128 + consumers(); }  // and those that copy

  SGLK_HOST_DEVICE constexpr int token_bytes() const { return tokens * kSm90Unit * 2; }
  SGLK_HOST_DEVICE constexpr int weight_bytes() const { return width * kSm90Unit / 2; }
  SGLK_HOST_DEVICE constexpr int rows() const {  // of scales of a unit at most
    return group == 0 ? kSm90Unit / kMinGroup : 1;
  }
  SGLK_HOST_DEVICE constexpr int scale_bytes() const { return rows() * width * 2; }
  SGLK_HOST_DEVICE constexpr int zero_bytes() const { return rows() * width / 2; }
  // With two barriers; a multiple of 1024, as the swizzle wants.
  SGLK_HOST_DEVICE constexpr int stage_bytes() const {
    return (token_bytes() + weight_bytes() + scale_bytes() + zero_bytes() + 16 + 1023) / 1024 * 1024;
  }
  SGLK_HOST_DEVICE constexpr int sum_bytes() const { return (teams - 1) * tokens * width * 4; }
  SGLK_HOST_DEVICE constexpr int shared_bytes() const {  // with one more barrier
    return 1024 + stages * stage_bytes() + 16 + sum_bytes();
  }
};

constexpr Sm90Tile kSm90Tile16Group{16, 8, 2, 128};
constexpr Sm90Tile kSm90Tile16Narrow{16, 12, 4, 128, 128};
constexpr Sm90Tile kSm90Tile32{32, 6, 2};
constexpr Sm90Tile kSm90Tile32Group{32, 6, 2, 128};
constexpr Sm90Tile kSm90Tile32Narrow{32, 8, 4, 128, 128};
constexpr Sm90Tile kSm90Tile64{64, 4, 2};
constexpr Sm90Tile kSm90Tile128{128, 4, 1};

// Of scales and zero points of a unit.
SGLK_HOST_DEVICE constexpr int unit_groups_of(int group_shift) {
  return group_shift < 2 ? 4 >> group_shift : 1;
}

struct alignas(64) TensorMap {  // CUtensorMap
  unsigned long words[16];
};

struct Sm90Params {
  TensorMap tokens;   // of a, swizzled: boxes of [tokens, 64]
  TensorMap weights;  // of 16 rows × 1 column, 8 bytes, each: boxes of [kSm90Rows, the tile's columns]
  TensorMap scales;   // boxes of [a unit's groups, the tile's columns]
  TensorMap zeros;    // of 8 columns each: boxes of [a unit's groups, an eighth of them]
  Params common;
};

}  // namespace sglk::marlin_gemm
