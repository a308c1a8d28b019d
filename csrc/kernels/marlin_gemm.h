// Parameters and tile shapes of the Marlin GEMM kernels, shared by host and device.
#pragma once

#ifdef __CUDACC__
#define SGLK_HOST_DEVICE __host__ __device__
#else
#define SGLK_HOST_DEVICE
#endif

namespace sglk::marlin_gemm {

constexpr int kTileN = 256;    // columns of a block
constexpr int kMinGroup = 32;  // rows of the smallest group
constexpr int kGatherThreads = 256;
constexpr int kMaxStride = 1 << 24;  // of a, in elements: threads step by up to 64 rows of it in 32 bits

// The tile of a block: m tokens × kTileN columns. k_teams teams of warps share it and split its rows; a warp
// has all tokens and `columns` columns. A team copies its units, of `steps` × 16 rows, into a ring of its
// own. All of it fits 99 KB (sm_86, sm_89, sm_120), but for the "deep" ones and the "long" of 32 tokens and
// less.
struct Tile {
  int m;
  int columns;  // 64, or 32
  int k_teams;
  int steps;      // 2, 4 or 8
  int stages;     // units of a team in the ring, the one in use among them
  int batch;      // how many of a warp's sums of 16 columns × 8 tokens teams exchange between two barriers
  int group = 0;  // rows of all groups, of which there are several; 0: as they come

  SGLK_HOST_DEVICE constexpr int unit() const { return steps * 16; }
  SGLK_HOST_DEVICE constexpr int team_warps() const { return kTileN / columns; }
  SGLK_HOST_DEVICE constexpr int threads() const { return 32 * team_warps() * k_teams; }
  SGLK_HOST_DEVICE constexpr int weight_bytes(int bits) const { return unit() * kTileN * bits / 8; }
  SGLK_HOST_DEVICE constexpr int token_bytes() const { return m * unit() * 2; }
  SGLK_HOST_DEVICE constexpr int groups() const {  // of a unit at most
    return group == 0 ? unit() / kMinGroup : (unit() + group - 1) / group;
  }
  SGLK_HOST_DEVICE constexpr int scale_bytes() const { return groups() * kTileN * 2; }
  SGLK_HOST_DEVICE constexpr int zero_bytes() const { return groups() * kTileN / 2; }
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
constexpr Tile kTile16{16, 64, 2, 4, 3, 8};
constexpr Tile kTile16Deep{16, 64, 4, 4, 2, 8};
constexpr Tile kTile16Long{16, 64, 4, 8, 2, 4, 128};
constexpr Tile kTile32{32, 32, 2, 4, 3, 4};
constexpr Tile kTile32Deep{32, 32, 2, 8, 2, 4};
constexpr Tile kTile32Group{32, 32, 2, 4, 3, 4, 128};
constexpr Tile kTile32Long{32, 32, 2, 8, 3, 4, 128};
constexpr Tile kTile64{64, 32, 2, 4, 2, 4};
constexpr Tile kTile64Group{64, 32, 2, 4, 2, 4, 128};
constexpr Tile kTile128{128, 32, 1, 4, 3, 1};
constexpr Tile kTile128Long{128, 32, 1, 8, 2, 1, 128};
constexpr Tile kTile16Byte{16, 64, 2, 2, 4, 4};  // for weights of 8 bits
constexpr Tile kTile64Byte{64, 32, 2, 2, 3, 4};
constexpr Tile kTile64Order{64, 64, 2, 4, 2, 8};  // for act-order, whose scales take registers
constexpr Tile kTile64OrderByte{64, 64, 2, 2, 3, 8};

// Divides by a number that the host knows, in three instructions where a division takes twenty
// (Granlund and Montgomery, Division by invariant integers using multiplication, 1994).
struct Divisor {
  int value;
  int shift;  // the least power of two that is no less than the value
  unsigned multiplier;

  SGLK_HOST_DEVICE static constexpr Divisor of(int value) {
    int shift = 0;
    while (shift < 31 && 1 << shift < value) ++shift;
    const unsigned long power = 1ul << (31 + shift);
    return {value, shift, static_cast<unsigned>((power + value - 1) / value)};
  }
  // x: from 0.
  SGLK_HOST_DEVICE constexpr int divide(int x) const {
    const unsigned long product = static_cast<unsigned long>(2u * static_cast<unsigned>(x)) * multiplier;
    return static_cast<int>(static_cast<unsigned>(product >> 32) >> shift);
  }
};

// Where a tile lies.
struct TileIndex {
  int m;
  int n;
};

// All tiles. They are numbered column by column within bands of eight rows of tiles, so that those in flight
// together share both operands in the L2.
struct TileGrid {
  static constexpr int kBand = 8;

  int m, n;
  Divisor band;         // tiles of a band
  Divisor last_height;  // rows of the last band

  SGLK_HOST_DEVICE static constexpr TileGrid of(int m, int n) {
    return {m, n, Divisor::of(kBand * n), Divisor::of((m - 1) % kBand + 1)};
  }
  SGLK_HOST_DEVICE constexpr int tiles() const { return m * n; }
  SGLK_HOST_DEVICE constexpr TileIndex at(int tile) const {
    const int first = band.divide(tile) * kBand, within = tile - first * n;
    const bool is_full = m - first >= kBand;
    const int column = is_full ? within / kBand : last_height.divide(within);
    return {first + within - column * (is_full ? kBand : last_height.value), column};
  }
};

// To begin a tile costs as much as so many units of 8 KB of weights (H200, 2026-11-26: 1.1 us, of 0.3 us a
// unit; 5 were best).
constexpr int kTileCost = 5;
// Where tiles are shared evenly, the first block of a tile, which would wait for the others' sums, has so
// many more of them (qkv with 1 token 3 % less; H200, 2026-11-29).
constexpr int kTileLead = 4;

// The work is the list of all tiles' units, one tile after the other, cut into a piece of about equal time
// for each block. To begin a tile costs as much as `cost` units, because its block sums, hands over and
// stores what it had of the one before. Where is_whole, blocks get whole tiles. A tile may be shorter in the
// list than it is: its first block has `lead` units more than there, its last one the rest.
struct Partition {
  int tiles;
  int cost;
  int lead;  // or cost is 0
  bool is_whole;
  int blocks;
  int longer;         // the first block with one unit more than those before it, which start later
  Divisor tile;       // units of a tile
  Divisor tile_cost;  // what it takes of the list: those, and what it costs to begin it
  Divisor piece, longer_piece;

  // blocks: at most length().
  SGLK_HOST_DEVICE static constexpr Partition of(int tiles, int tile_units, int cost, bool is_whole,
                                                 int blocks) {
    return cut_list(tiles, tile_units, tile_units + cost, is_whole, blocks);
  }
  // As many blocks share each tile, so that none has units of two. The first has about `lead` units more than
  // the others, whose sums it adds to its own; the last has what is left. sharers²: at most tile_units.
  SGLK_HOST_DEVICE static constexpr Partition even(int tiles, int tile_units, int sharers, int lead) {
    lead = lead * 4 < tile_units ? lead : tile_units / 4;
    const int shared = (tile_units - lead + sharers / 2) / sharers * sharers, rest = tile_units - shared;
    Partition p = cut_list(tiles, tile_units, shared, false, tiles * sharers);
    if (rest > 0) p.lead = rest < lead ? rest : lead;
    return p;
  }
  // in_list: what a tile takes of it.
  SGLK_HOST_DEVICE static constexpr Partition cut_list(int tiles, int tile_units, int in_list, bool is_whole,
                                                       int blocks) {
    const int cost = in_list > tile_units ? in_list - tile_units : 0;
    Partition p{tiles, cost, 0, is_whole, blocks, 0, Divisor::of(tile_units), Divisor::of(in_list), {}, {}};
    const int piece = p.length() / blocks;
    p.longer = blocks - p.length() % blocks;
    p.piece = Divisor::of(piece);
    p.longer_piece = Divisor::of(piece + 1);
    return p;
  }

  // Whether blocks share tiles, through memory.
  SGLK_HOST_DEVICE constexpr bool is_split() const { return !is_whole && blocks > 1; }
  SGLK_HOST_DEVICE constexpr int length() const { return is_whole ? tiles : tiles * tile_cost.value; }

  // The first unit of a block; equal to the next block's if it has none. first(blocks) is the number of all.
  SGLK_HOST_DEVICE constexpr int first(int block) const {
    const int position = block * piece.value + (block > longer ? block - longer : 0);
    if (is_whole) return position * tile.value;
    const int index = tile_cost.divide(position), in_list = position - index * tile_cost.value;
    return index * tile.value + (in_list > cost ? in_list - cost + lead : 0);
  }
  // The block that has a unit.
  SGLK_HOST_DEVICE constexpr int block_of(int unit) const {
    const int index = tile.divide(unit), in_tile = unit - index * tile.value + cost - lead;
    const int in_list = in_tile < 0 ? 0 : in_tile < tile_cost.value ? in_tile : tile_cost.value - 1;
    const int position = is_whole ? index : index * tile_cost.value + in_list;
    const int rest = position - longer * piece.value;
    return rest < 0 ? piece.divide(position) : longer + longer_piece.divide(rest);
  }
};

// The teams of a block share the units of each of its pieces so that, over all of them, none has more than
// one unit more than another. The first unit of a team in a piece of `units`, of which the block has `before`
// units done.
SGLK_HOST_DEVICE inline int team_unit(int team, int teams, int before, int units) {
  const unsigned end = before + units, count = teams;
  const int end_rest = end % count, before_rest = before % count;
  return static_cast<int>(end / count - before / count) * team + (end_rest < team ? end_rest : team) -
         (before_rest < team ? before_rest : team);
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
  float* partial;      // [blocks, tile m · kTileN]: what a block has of a tile that an earlier one began
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

// tokens × kTileN columns, in stages of a unit. `teams` of two warpgroups take turns with the units.
struct Sm90Tile {
  int tokens;
  int stages;  // a multiple of `teams`
  int teams;
  int group = 0;  // rows of all groups, of which there are several: a unit's, or 0: as they come

  SGLK_HOST_DEVICE constexpr int consumers() const { return 256 * teams; }      // threads that multiply
  SGLK_HOST_DEVICE constexpr int threads() const { return 128 + consumers(); }  // and those that copy

  SGLK_HOST_DEVICE constexpr int token_bytes() const { return tokens * kSm90Unit * 2; }
  SGLK_HOST_DEVICE constexpr int weight_bytes() const { return kTileN * kSm90Unit / 2; }
  SGLK_HOST_DEVICE constexpr int rows() const {  // of scales of a unit at most
    return group == 0 ? kSm90Unit / kMinGroup : 1;
  }
  SGLK_HOST_DEVICE constexpr int scale_bytes() const { return rows() * kTileN * 2; }
  SGLK_HOST_DEVICE constexpr int zero_bytes() const { return rows() * kTileN / 2; }
  SGLK_HOST_DEVICE constexpr int stage_bytes() const {  // a multiple of 1024, as the swizzle wants
    return (token_bytes() + weight_bytes() + scale_bytes() + zero_bytes() + 1023) / 1024 * 1024;
  }
  SGLK_HOST_DEVICE constexpr int sum_bytes() const { return (teams - 1) * tokens * kTileN * 4; }
  SGLK_HOST_DEVICE constexpr int shared_bytes() const {
    return 1024 + stages * (stage_bytes() + 16) + 16 + sum_bytes();
  }
};

constexpr Sm90Tile kSm90Tile16Group{16, 8, 2, 128};
constexpr Sm90Tile kSm90Tile32{32, 6, 2};
constexpr Sm90Tile kSm90Tile32Group{32, 6, 2, 128};
constexpr Sm90Tile kSm90Tile64{64, 4, 2};
constexpr Sm90Tile kSm90Tile128{128, 4, 1};

// Of scales and zero points of a unit.
SGLK_HOST_DEVICE constexpr int unit_groups_of(int group_shift) {
  return group_shift < 2 ? 4 >> group_shift : 1;
}

// The blocks that share a tile add up their parts: up to `flat` at the first of them, more up a binary tree.
// A block has children after it alone, so that it waits for blocks placed before it. Places count from the
// first block of the tile.
struct Parent {
  int place;
  int child;  // which of its children
};
// Parts of 128 tokens are 128 KB each: of seven a tree took 12 us less, of four 2 us more (H200, 2026-11-27).
// Of 16 tokens, 17 parts up a tree took 9.6 us in all, flat 7.4 (H200, 2026-11-28); a word holds the flags of
// 31.
SGLK_HOST_DEVICE constexpr int max_flat(int tokens) { return tokens <= 32 ? 31 : tokens < 128 ? 16 : 4; }

// The place of a child, 0: none.
SGLK_HOST_DEVICE inline int child_of(int place, int child, int blocks, int flat) {
  if (blocks <= flat) return place == 0 && child + 1 < blocks ? child + 1 : 0;
  const int distance = 1 << child;
  return (place & (2 * distance - 1)) == 0 && place + distance < blocks ? place + distance : 0;
}
// place > 0.
SGLK_HOST_DEVICE inline Parent parent_of(int place, int blocks, int flat) {
  if (blocks <= flat) return {0, place - 1};
  int child = 0;
  while ((place >> child & 1) == 0) ++child;
  return {place & (place - 1), child};
}

struct alignas(64) TensorMap {  // CUtensorMap
  unsigned long words[16];
};

struct Sm90Params {
  TensorMap tokens;   // of a, swizzled: boxes of [tokens, 64]
  TensorMap weights;  // of 16 rows × 1 column, 8 bytes, each: boxes of [kSm90Rows, kTileN]
  TensorMap scales;   // boxes of [a unit's groups, kTileN]
  TensorMap zeros;    // of 8 columns each: boxes of [a unit's groups, kTileN / 8]
  Params common;
};

}  // namespace sglk::marlin_gemm
