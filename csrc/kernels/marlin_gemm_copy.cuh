// How the blocks of marlin_gemm.cu are laid out, and how what they multiply comes to shared memory.
#pragma once

#include "common/dequantize.cuh"
#include "common/mma.cuh"
#include "marlin_gemm.h"

namespace sglk::marlin_gemm {

enum class Weight { kInt4, kInt8, kFloat8 };

template <class T_, Weight kWeight_, bool kIsActOrder_, int kM, int kTokens_, int kTeams_, int kSteps_,
          int kStages_, int kBatch_>
struct Config {
  using T = T_;
  static constexpr Weight kWeight = kWeight_;
  static constexpr bool kIsActOrder = kIsActOrder_;
  static constexpr Tile kTile{kM, kTokens_, kTeams_, kSteps_, kStages_, kBatch_};
  static constexpr int kTokens = kTokens_, kTeams = kTeams_, kSteps = kSteps_, kStages = kStages_;
  static constexpr int kBatch = kBatch_;
  static constexpr int kBits = kWeight == Weight::kInt4 ? 4 : 8;
  static constexpr int kPlanes = kBits / 4;  // 16-byte words of a lane in a 16 × 64 tile of weights
  static constexpr int kTeamThreads = 32 * kTile.team_warps();
  static constexpr int kTokenTiles = kTokens / 8;
  static_assert(kTeams > 1, "team_barrier and add_teams");
  static constexpr bool kScalesSums = !kIsActOrder && kTokens <= 32;
  static constexpr bool kWorksAhead = !kIsActOrder && kTokens == 64;
  static constexpr bool kFoldsZeros = kTokens == 8 && kScalesSums && kWeight == Weight::kInt4 && is_bf16<T>;
  static constexpr int kUnitBytes = kTile.unit_bytes(kBits);
  static constexpr int kTokenOffset = kTile.weight_bytes(kBits);  // in a unit
  static constexpr int kScaleOffset = kTokenOffset + kTile.token_bytes();
  static constexpr int kZeroOffset = kScaleOffset + kTile.scale_bytes();
};

// Offset of a 16-byte chunk of the tokens of a unit, whose rows are 2 · kSteps chunks: chunks are permuted so
// that ldmatrix meets every bank once.
template <int kSteps>
__device__ __forceinline__ int token_chunk(int row, int chunk) {
  return (row * 2 * kSteps + (chunk ^ (kSteps == 2 ? row / 2 % 4 : row % 8))) * 16;
}

template <class C>
__device__ __forceinline__ void team_barrier(int team) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "n"(C::kTeamThreads) : "memory");
}

// Where a thread stands, and its addresses in a slot of the ring.
template <class C>
struct Place {
  static constexpr int kChunkRow = 2 * C::kSteps;  // chunks of a row of tokens
  static constexpr int kRows =
      C::kTeamThreads / kChunkRow;  // of tokens that a team copies at once, 8 or more

  int team, thread, lane;  // thread: of the team
  int warp_n, warp_m;      // of the team
  uint32_t weights;        // to copy and to read
  uint32_t tokens;         // to read with ldmatrix
  uint32_t scales, zeros;  // to read
  uint32_t copied_tokens, copied_group;
  // Threads 0 to 63 of a team copy up to two groups' scales, 64 to 79 their zero points.
  bool copies_scales, copies_group;

  __device__ __forceinline__ explicit Place(const Params& p) {
    // The broadcast tells the compiler that a warp does not diverge on these.
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    team = warp / C::kTile.team_warps();
    const int team_warp = warp % C::kTile.team_warps();
    lane = threadIdx.x % 32;
    thread = team_warp * 32 + lane;
    warp_n = team_warp % kColumnWarps, warp_m = team_warp / kColumnWarps;
    weights = opaque(team_warp * (C::kSteps * C::kPlanes * 512) + lane * 16);
    const int row = warp_m * C::kTokens + (C::kTokenTiles == 1 ? 0 : lane / 16 * 8) + lane % 8;
    tokens = opaque(C::kTokenOffset + token_chunk<C::kSteps>(row, lane / 8 % 2));
    copied_tokens = opaque(C::kTokenOffset + token_chunk<C::kSteps>(thread / kChunkRow, thread % kChunkRow));
    scales = opaque(C::kScaleOffset + warp_n * 128 + lane / 4 * 16);
    zeros = opaque(C::kZeroOffset + (warp_n * 8 + lane / 4) * 4);
    copies_scales = thread < 64;
    copied_group =
        opaque(copies_scales ? C::kScaleOffset + thread * 16 : C::kZeroOffset + (thread - 64) * 16);
    const bool has_row = group_row() < (p.group_shift == 0 ? C::kTile.groups() : 1);
    copies_group =
        !C::kIsActOrder && has_row && (copies_scales || (C::kWeight == Weight::kInt4 && p.zeros != nullptr));
  }

  __device__ __forceinline__ int group_row() const { return copies_scales ? thread / 32 : (thread - 64) / 8; }
};

// A team's way through the units of its block: `left` units of one tile, then the next tile.
template <class C>
struct Walk {
  int next;         // the unit in the list of all units where the piece after this one begins
  int first, last;  // of the block, exclusive
  int unit, left;
  int rows;            // of tokens from this thread's first to the last
  const char* weight;  // of this lane, at `unit`
  const char* tokens;  // of this thread, at `unit`
  const char* group;   // the chunk of scales or zero points that this thread copies, in its first group
  int group_bytes;     // from one group to the next

  __device__ __forceinline__ void open_next(const Params& p, const Place<C>& place) {
    const int tile = next / p.partition.tile_units, begin = next - tile * p.partition.tile_units;
    const int end = min(last - tile * p.partition.tile_units, p.partition.tile_units), before = next - first;
    const int team_begin = team_unit(place.team, C::kTeams, before, end - begin);
    unit = begin + team_begin;
    left = team_unit(place.team + 1, C::kTeams, before, end - begin) - team_begin;
    next = tile * p.partition.tile_units + end;
    const TileIndex index = tile_at(tile, p.m_tiles, p.n_tiles);
    // Columns beyond the matrix repeat the last ones, tokens beyond it are whatever was there: neither is
    // stored.
    const int n0 = min(index.n * kTileN + place.warp_n * 64, p.n - 64);
    weight = static_cast<const char*>(p.weight) + (int64_t{unit} * C::kSteps * p.n + n0) * (C::kBits * 2) +
             place.lane * (16 * C::kPlanes);
    const int row = place.thread / Place<C>::kChunkRow, chunk = place.thread % Place<C>::kChunkRow;
    const int m = index.m * C::kTile.m + row;
    rows = row < C::kTile.m ? p.m - m : 0;
    tokens = static_cast<const char*>(p.a) + (m * p.a_stride + unit * C::kTile.unit() + chunk * 8) * 2;
    if constexpr (!C::kIsActOrder) {
      const int column = index.n * kTileN;
      if (place.copies_scales) {
        group_bytes = p.n * 2;
        group = static_cast<const char*>(p.scales) + min(column + place.thread % 32 * 8, p.n - 8) * 2;
      } else {
        group_bytes = p.n / 2;
        group = static_cast<const char*>(p.zeros) + min(column + place.thread % 8 * 32, p.n - 32) / 2;
      }
      group += int64_t{place.group_row()} * group_bytes;
    }
  }

  __device__ __forceinline__ const char* group_at(const Params& p) const {
    return group + int64_t{unit * C::kTile.groups() >> p.group_shift} * group_bytes;
  }
};

// Starts the copies of a unit, if one is left.
template <class C>
__device__ __forceinline__ void copy_unit(const Params& p, Walk<C>& walk, const Place<C>& place,
                                          uint32_t slot) {
  while (walk.left == 0) {
    if (walk.next >= walk.last) return;
    walk.open_next(p, place);
  }
  --walk.left;
#pragma unroll
  for (int step = 0; step < C::kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < C::kPlanes; ++i) {
      copy_async(slot + place.weights + (step * C::kPlanes + i) * 512, walk.weight + i * 16);
    }
    walk.weight += int64_t{p.n} * (C::kBits * 2);
  }
#pragma unroll
  for (int row = 0; row < C::kTile.m; row += Place<C>::kRows) {
    if (row < walk.rows) {
      copy_async(slot + place.copied_tokens + row * (Place<C>::kChunkRow * 16),
                 walk.tokens + row * p.a_stride * 2);
    }
  }
  if (place.copies_group) {
    copy_async(slot + place.copied_group, walk.group_at(p));
  }
  walk.tokens += C::kTile.unit() * 2;
  ++walk.unit;
}

}  // namespace sglk::marlin_gemm
