// How the blocks of the Marlin GEMM share its work, known to host and device.
#pragma once

#ifdef __CUDACC__
#define SGLK_HOST_DEVICE __host__ __device__
#else
#define SGLK_HOST_DEVICE
#endif

namespace sglk::marlin_gemm {

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

// Blocks take some tiles, `direct`, whole and in turn, so that those in flight together are neighbours and
// share operands in the L2 (gate_up with 4096 tokens 6 % less than all in the list; H200, 2026-11-29). The
// rest of the work is the list of the other tiles' units, one tile after the other, cut into a piece of about
// equal time for each block. To begin a tile costs as much as `cost` units, because its block sums, hands
// over and stores what it had of the one before. A tile may be shorter in the list than it is: its first
// block has `lead` units more than there, its last one the rest.
struct Partition {
  int tiles;
  int list_begin;  // units of the direct tiles, which come first
  int cost;
  int lead;  // 0 where cost is not
  int blocks;
  int longer;         // the first block with one unit more than those before it, which start later
  Divisor tile;       // units of a tile
  Divisor tile_cost;  // what it takes of the list: those, and what it costs to begin it
  Divisor piece, longer_piece;

  // direct: a multiple of blocks, or all tiles. blocks: at most length(), or tiles where all are direct.
  SGLK_HOST_DEVICE static constexpr Partition of(int tiles, int tile_units, int cost, int direct,
                                                 int blocks) {
    return cut_list(tiles, tile_units, tile_units + cost, direct, blocks);
  }
  // As many blocks share each tile, so that none has units of two. The first has about `lead` units more than
  // the others, whose sums it adds to its own; the last has what is left. sharers²: at most tile_units.
  SGLK_HOST_DEVICE static constexpr Partition even(int tiles, int tile_units, int sharers, int lead) {
    const int most = tile_units / 4;
    lead = lead < most ? lead : most;
    const int shared = (tile_units - lead + sharers / 2) / sharers * sharers, rest = tile_units - shared;
    Partition p = cut_list(tiles, tile_units, shared, 0, tiles * sharers);
    if (rest > 0) p.lead = rest < lead ? rest : lead;
    return p;
  }
  // in_list: what a tile takes of it.
  SGLK_HOST_DEVICE static constexpr Partition cut_list(int tiles, int tile_units, int in_list, int direct,
                                                       int blocks) {
    Partition p{};
    p.tiles = tiles;
    p.list_begin = direct * tile_units;
    p.cost = in_list > tile_units ? in_list - tile_units : 0;
    p.blocks = p.longer = blocks;
    p.tile = Divisor::of(tile_units);
    p.tile_cost = Divisor::of(in_list);
    if (p.is_whole()) return p;  // pieces of nothing
    const int piece = p.length() / blocks;
    p.longer = blocks - p.length() % blocks;
    p.piece = Divisor::of(piece);
    p.longer_piece = Divisor::of(piece + 1);
    return p;
  }

  SGLK_HOST_DEVICE constexpr bool is_whole() const { return list_begin == tiles * tile.value; }
  // Whether blocks share tiles, through memory.
  SGLK_HOST_DEVICE constexpr bool is_split() const { return !is_whole() && blocks > 1 && blocks != tiles; }
  SGLK_HOST_DEVICE constexpr int length() const {  // of the list
    return (tiles - list_begin / tile.value) * tile_cost.value;
  }

  // A block's first unit in the list; equal to the next block's if it has none. first(blocks) is the number
  // of all units.
  SGLK_HOST_DEVICE constexpr int first(int block) const {
    const int position = block * piece.value + (block > longer ? block - longer : 0);
    const int index = tile_cost.divide(position), in_list = position - index * tile_cost.value;
    return list_begin + index * tile.value + (in_list > cost ? in_list - cost + lead : 0);
  }
  // The block that has a unit of the list.
  SGLK_HOST_DEVICE constexpr int block_of(int unit) const {
    const int index = tile.divide(unit - list_begin);
    const int in_tile = unit - list_begin - index * tile.value + cost - lead;
    const int in_list = in_tile < 0 ? 0 : in_tile < tile_cost.value ? in_tile : tile_cost.value - 1;
    const int position = index * tile_cost.value + in_list, rest = position - longer * piece.value;
    return rest < 0 ? piece.divide(position) : longer + longer_piece.divide(rest);
  }

  // The first of all units of a block.
  SGLK_HOST_DEVICE constexpr int begin(int block) const {
    return list_begin > 0 ? block * tile.value : first(block);
  }
  // The first one after a piece that ends at `end`; first(block + 1) if it has no more.
  SGLK_HOST_DEVICE constexpr int next(int block, int end) const {
    if (end > list_begin) return end;
    const int next = end + (blocks - 1) * tile.value;
    return next < list_begin ? next : first(block);
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

}  // namespace sglk::marlin_gemm
