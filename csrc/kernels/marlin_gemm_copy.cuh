// How the blocks of marlin_gemm.cu are laid out, and how what they multiply comes to shared memory.
#pragma once

#include "common/dequantize.cuh"
#include "common/mma.cuh"
#include "marlin_gemm.h"

namespace sglk::marlin_gemm {

enum class Weight { kInt4, kInt8, kFloat8 };

template <class T_, Weight kWeight_, bool kIsActOrder_, int kTokens_, int kColumns_, int kTeams_, int kSteps_,
          int kStages_, int kBatch_, int kGroup_, int kWidth_>
struct Config {
  using T = T_;
  static constexpr Weight kWeight = kWeight_;
  static constexpr bool kIsActOrder = kIsActOrder_;
  static constexpr Tile kTile{kTokens_, kColumns_, kTeams_, kSteps_, kStages_, kBatch_, kGroup_, kWidth_};
  static constexpr int kWidth = kWidth_;
  static constexpr int kGroup = kGroup_, kPairs = kSteps_ / 2;  // pairs of steps in a unit
  static constexpr int kTokens = kTokens_, kTeams = kTeams_, kSteps = kSteps_, kStages = kStages_;
  static constexpr int kColumns = kColumns_, kBatch = kBatch_;
  static constexpr int kBits = kWeight == Weight::kInt4 ? 4 : 8;
  static constexpr int kPlanes = kBits / 4;       // 16-byte chunks of a lane in a 16 × 64 tile of weights
  static constexpr int kSharers = 64 / kColumns;  // warps to such a tile
  static constexpr int kWords = 4 * kPlanes / kSharers;  // of a lane in it
  static constexpr int kTeamThreads = 32 * kTile.team_warps();
  static constexpr int kTokenTiles = kTokens / 8;
  static constexpr bool kLoadsPairs = kTokenTiles == 1;  // of steps: ldmatrix has eight tokens of two, or 16
  static constexpr int kLoadedTiles = kLoadsPairs ? 2 : kTokenTiles;
  static constexpr int kColumnTiles = kColumns / 16;
  // In the end the first kOwners teams have kOwn each of a warp's 16 columns.
  static constexpr int kOwners = kTeams < kColumnTiles ? kTeams : kColumnTiles;
  static constexpr int kOwn = kColumnTiles / kOwners;
  static constexpr bool kScalesSums = !kIsActOrder && kTokens <= 32;
  static constexpr bool kWorksAhead = !kIsActOrder && kTokens >= 64;
  static constexpr bool kHasDirect = has_direct(kTokens, kWeight == Weight::kInt4, kIsActOrder);
  // A part is reported once it is written; with 64 tokens of two teams, whose rings have no slack while a
  // warp waits for the memory, when the block has nothing more to do (0.4 to 3 % of 97 us; H200, 2026-11-28).
  static constexpr bool kReportsLate = kTokens == 64 && kTeams > 1;
  static constexpr bool kIsRaw = kWeight == Weight::kInt4 && !kIsActOrder && is_bf16<T> &&
                                 (kTokens == 8 || (kTokens == 16 && kGroup != 0));  // for lack of registers
  // Each warp of a team adds up the tokens of a share of a unit's steps, for all of them.
  static constexpr bool kSharesTokenSums = kIsRaw && kTile.token_sum_bytes() > 0;
  static constexpr int kOwnSteps = kSteps / kTile.team_warps();
  static constexpr float kSumUnit = kIsRaw ? kRawUnit : kWeight == Weight::kInt4 ? kIntegerUnit<T> : 1.0f;
  // There is one tile of tokens, so that weights are read once (gate_up with one token 35.6 -> 33.1 us, with
  // 32 56.8 -> 55.4; with 64, but in wide tiles, it spills, and takes 14 % longer; H200, 2026-11-28).
  static constexpr bool kReadsOnce = kTokens <= 32 || kWidth > kTileN;
  static constexpr bool kHasRegisters = kTokens <= 16;  // for addresses that save instructions
  // Where the sums go is found before the products: some 100 instructions, each of which waits for the one
  // before, less between them and the output (o with 8 tokens 9.1 -> 8.8 us; H200, 2026-11-29).
  static constexpr bool kFindsEarly = kTokens == 8;
  // All stages are copied into before the first unit is there (qkv and o with 1 token 2 and 1 % less; H200,
  // 2026-11-29).
  static constexpr bool kFillsRing = kTokens == 8;
  // In a unit: weights [step][64 columns][plane][lane] · tokens · scales [group] · zero points [group] ·
  // sums of tokens [token][warp].
  static constexpr int kUnitBytes = kTile.unit_bytes(kBits);
  static constexpr int kStepBytes = kTile.weight_bytes(kBits) / kSteps;
  static constexpr int kTokenOffset = kTile.weight_bytes(kBits);
  static constexpr int kScaleOffset = kTokenOffset + kTile.token_bytes();
  static constexpr int kZeroOffset = kScaleOffset + kTile.scale_bytes();
  static constexpr int kTokenSumOffset = kZeroOffset + kTile.zero_bytes();
};

// Offset of a 16-byte chunk of the tokens of a unit, whose rows are 2 · kSteps chunks: chunks are permuted so
// that ldmatrix meets every bank once.
template <int kSteps>
__device__ __forceinline__ int token_chunk(int row, int chunk) {
  return (row * 2 * kSteps + (chunk ^ (kSteps == 2 ? row / 2 % 4 : row % 8))) * 16;
}

template <class C>
__device__ __forceinline__ void team_barrier(int team) {
  named_barrier<C::kTeamThreads>(1 + team);
}

// As in Params, or what the kernel is for.
template <class C>
__device__ __forceinline__ bool has_one_group(const Params& p) {
  return C::kGroup == 0 && p.groups == 1;
}
template <class C>
__device__ __forceinline__ int group_shift(const Params& p) {
  static_assert(C::kGroup == 0 || C::kGroup == 4 * kMinGroup);
  return C::kGroup == 0 ? p.group_shift : 2;
}

// Where a thread stands, and its addresses in a slot of the ring.
template <class C>
struct Place {
  // Whether a thread copies neighbours, at one address but for a constant (128 tokens 661 -> 639 instructions
  // a unit, of 256 products): it has to know of each whether it is beyond the last column. To blocks of two
  // teams that costs as much.
  static constexpr bool kCopiesNeighbours = C::kTeams == 1;
  static constexpr int kChunkRow = 2 * C::kSteps;  // chunks of a row of tokens
  // Of tokens that a team copies at once, eight at least, after which the permutation repeats.
  static constexpr int kMostRowThreads = kCopiesNeighbours ? 8 : C::kTeamThreads / 8;
  static constexpr int kRowThreads = kChunkRow < kMostRowThreads ? kChunkRow : kMostRowThreads;
  static constexpr int kRows = C::kTeamThreads / kRowThreads;

  // Of weights a chunk is 16 bytes of each lane, and a row 16 of the matrix. A warp copies as many chunks as
  // the others.
  static constexpr int kRowChunks = C::kWidth / 64 * C::kPlanes;
  static constexpr int kOwnChunks = C::kSteps * kRowChunks / C::kTile.team_warps();
  static constexpr int kMostNeighbours = kCopiesNeighbours ? kRowChunks : C::kPlanes;
  static constexpr int kNeighbours = kOwnChunks < kMostNeighbours ? kOwnChunks : kMostNeighbours;
  static constexpr int kRowWarps = kRowChunks / kNeighbours;          // that share a row
  static constexpr int kRowStep = C::kTile.team_warps() / kRowWarps;  // from one of a warp's rows to the next

  // The chunks of the scales of a unit's groups, and of their zero points, which the threads of a team copy
  // in turn.
  static constexpr int kScaleRow = C::kWidth / 8, kZeroRow = C::kWidth / 32;
  static constexpr int kScaleChunks = kScaleRow * C::kTile.groups();
  static constexpr int kGroupChunks = kScaleChunks + kZeroRow * C::kTile.groups();
  static constexpr int kGroupCopies = (kGroupChunks + C::kTeamThreads - 1) / C::kTeamThreads;

  int team, lane;
  unsigned thread;                          // of the team
  int warp;                                 // of the team, numbered by columns
  uint32_t weights, tokens, scales, zeros;  // to read
  uint32_t summed_tokens;  // kSharesTokenSums: as an A fragment, from the warp's first step on
  uint32_t copied_tokens, copied_group[kGroupCopies];
  bool copies_group[kGroupCopies];

  __device__ __forceinline__ Place() {
    const unsigned block_warp = uniform(threadIdx.x / 32);
    const unsigned team_warp = block_warp % C::kTile.team_warps();
    team = block_warp / C::kTile.team_warps();
    warp = team_warp;
    lane = threadIdx.x % 32;
    thread = team_warp * 32 + threadIdx.x % 32;
  }

  // What the first copies of weights do without, so that it does not hold them up (a layer of one token takes
  // 2 % less; H200, 2026-11-29).
  __device__ __forceinline__ void find_addresses(const Params& p) {
    const int tile = warp / C::kSharers, share = warp % C::kSharers;
    weights = opaque(tile * (C::kPlanes * 512) + lane * 16 + share * (C::kBits == 4 ? 8 : 512));
    const int row = (C::kLoadsPairs ? 0 : lane / 16 * 8) + lane % 8;
    const int matrix = C::kLoadsPairs ? lane / 8 : lane / 8 % 2;  // of a row
    tokens = opaque(C::kTokenOffset + token_chunk<C::kSteps>(row, matrix));
    if constexpr (C::kSharesTokenSums) {
      const int row = lane % 16;
      const int chunk = warp * C::kOwnSteps * 2 + lane / 16;
      summed_tokens = opaque(C::kTokenOffset + token_chunk<C::kSteps>(row, chunk));
    }
    // Permuted per 64 columns, or per 32 where there is a single group.
    scales = opaque(C::kScaleOffset + tile * 128 +
                    (has_one_group<C>(p) ? lane / 8 * 16 + share * 64 : lane / 4 * 16 + share * 8));
    zeros = opaque(C::kZeroOffset + (tile * 8 + lane / 4) * 4);
    copied_tokens =
        opaque(C::kTokenOffset + token_chunk<C::kSteps>(thread / kRowThreads, thread % kRowThreads));
#pragma unroll
    for (int i = 0; i < kGroupCopies; ++i) {
      copied_group[i] = opaque(copies_scales(i) ? C::kScaleOffset + chunk(i) * 16
                                                : C::kZeroOffset + (chunk(i) - kScaleChunks) * 16);
      const bool has_row = chunk(i) < kGroupChunks && group_row(i) < max(C::kPairs >> group_shift<C>(p), 1);
      copies_group[i] = !C::kIsActOrder && has_row &&
                        (copies_scales(i) || (C::kWeight == Weight::kInt4 && p.zeros != nullptr));
    }
  }

  // Of this thread's i-th copy.
  __device__ __forceinline__ unsigned chunk(int i) const { return i * C::kTeamThreads + thread; }
  __device__ __forceinline__ bool copies_scales(int i) const { return chunk(i) < kScaleChunks; }
  __device__ __forceinline__ int group_row(int i) const {
    return copies_scales(i) ? chunk(i) / kScaleRow : (chunk(i) - kScaleChunks) / kZeroRow;
  }
  // The first of the weights that a warp copies.
  __device__ __forceinline__ int weight_row() const { return warp / kRowWarps; }
  __device__ __forceinline__ int weight_tile() const { return warp % kRowWarps * (kNeighbours / C::kPlanes); }
};

// A team's ring.
template <class C>
struct Ring {
  uint32_t base;
  uint32_t slot, free_slot;  // to read next, to copy into
  bool is_full = false;      // C::kFillsRing: until the first unit has served there is nothing to copy into

  __device__ __forceinline__ void advance() {
    slot = slot + C::kUnitBytes == base + C::kStages * C::kUnitBytes ? base : slot + C::kUnitBytes;
  }
};

// Waits until the unit in the next slot is there, and the one before it has served.
template <class C>
__device__ __forceinline__ void await_unit(const Place<C>& place, bool is_full = false) {
  if (is_full) {
    wait_copies<C::kStages - 1>();
  } else {
    wait_copies<C::kStages - 2>();
  }
  team_barrier<C>(place.team);
}

// A block waits for those after it in the list, which therefore come first in the grid.
__device__ __forceinline__ int block_index() { return gridDim.x - 1 - blockIdx.x; }

// As Partition has it.
template <class C>
__device__ __forceinline__ int first_unit(const Params& p, int block) {
  return C::kHasDirect ? p.partition.begin(block) : p.partition.first(block);
}
template <class C>
__device__ __forceinline__ int next_unit(const Params& p, int block, int end) {
  return C::kHasDirect ? p.partition.next(block, end) : end;
}
// Units that a block, whose first in the list is `first`, has before another: as the teams count them, which
// share each direct tile anew.
template <class C>
__device__ __forceinline__ int units_before(int first, int unit) {
  return C::kHasDirect ? max(unit - first, 0) : unit - first;
}

// A team's way through the units of its block: `left` units of one tile, then the next tile.
template <class C>
struct Walk {
  int next;         // the unit among all where the piece after this one begins
  int first, last;  // of the block in the list, exclusive
  int unit, left;
  TileIndex index{};                          // of the unit's tile
  int rows;                                   // of tokens from this thread's first to the last
  int columns;                                // from this thread's first of weights to the last
  const char* weight;                         // of this thread, at `unit`
  const char* tokens;                         // of this thread, at `unit`
  const char* group[Place<C>::kGroupCopies];  // what this thread copies of scales or zero points of a group
  int weight_bytes;                           // from one row of weights that this thread copies to the next
  int token_bytes;                            // the same of tokens

  __device__ __forceinline__ Walk(const Params& p, const Place<C>& place, int begin, int last)
      : next(begin), first(begin), last(last), unit(0), left(0) {
    if (C::kHasDirect) first = p.partition.first(block_index());
    weight_bytes = opaque(p.n * (C::kBits * 2 * Place<C>::kRowStep));
    token_bytes = opaque(static_cast<int>(p.a_stride) * (Place<C>::kRows * 2));
    open<false>(p, place);
  }

  // Goes on to a unit, if one is left: to its weights, or to the rest too.
  template <bool kRest>
  __device__ __forceinline__ void open(const Params& p, const Place<C>& place) {
    while (left == 0 && next < last) {
      const int tile_units = p.partition.tile.value, tile = p.partition.tile.divide(next);
      const int begin = next - tile * tile_units, end = min(last - tile * tile_units, tile_units);
      const int before = units_before<C>(first, next);
      const int team_begin = team_unit(place.team, C::kTeams, before, end - begin);
      unit = begin + team_begin;
      left = team_unit(place.team + 1, C::kTeams, before, end - begin) - team_begin;
      next = next_unit<C>(p, block_index(), tile * tile_units + end);
      index = p.tiles.at(tile);
      // Columns beyond the matrix are the last ones or whatever was there, as tokens beyond it are: neither
      // is stored.
      const int n0 = min(index.n * C::kWidth + place.weight_tile() * 64, p.n - 64);
      columns = p.n - n0;
      const int64_t row = int64_t{unit} * C::kSteps + place.weight_row();
      weight = static_cast<const char*>(p.weight) + (row * p.n + n0) * (C::kBits * 2) +
               place.lane * (16 * C::kPlanes);
      if constexpr (kRest) open_rest(p, place);
    }
  }
  // What else there is than weights, of the unit gone on to.
  __device__ __forceinline__ void open_rest(const Params& p, const Place<C>& place) {
    const int token = place.thread / Place<C>::kRowThreads, chunk = place.thread % Place<C>::kRowThreads;
    const int m = index.m * C::kTokens + token;
    rows = token < C::kTokens ? p.m - m : 0;
    tokens = static_cast<const char*>(p.a) + (m * p.a_stride + unit * C::kTile.unit() + chunk * 8) * 2;
    if constexpr (!C::kIsActOrder) {
      const int column = index.n * C::kWidth;
#pragma unroll
      for (int i = 0; i < Place<C>::kGroupCopies; ++i) {
        const int row_chunk = place.chunk(i) % Place<C>::kScaleRow;
        if (place.copies_scales(i)) {
          group[i] = static_cast<const char*>(p.scales) + min(column + row_chunk * 8, p.n - 8) * 2;
        } else {
          group[i] = static_cast<const char*>(p.zeros) +
                     min(column + row_chunk % Place<C>::kZeroRow * 32, p.n - 32) / 2;
        }
        group[i] += int64_t{place.group_row(i)} * group_bytes(p, place, i);
      }
    }
  }

  // From one group to the next.
  __device__ __forceinline__ int group_bytes(const Params& p, const Place<C>& place, int i) const {
    return place.copies_scales(i) ? p.n * 2 : p.n / 2;
  }
  __device__ __forceinline__ const char* group_at(const Params& p, const Place<C>& place, int i) const {
    return group[i] + int64_t{unit * C::kPairs >> group_shift<C>(p)} * group_bytes(p, place, i);
  }

  // Starts the copies of a unit, if one is left: of its weights, of the rest, or of both.
  template <bool kWeights = true, bool kRest = true>
  __device__ __forceinline__ void copy(const Params& p, const Place<C>& place, uint32_t slot) {
    if (left > 0) {
      constexpr int kNeighbours = Place<C>::kNeighbours;
      const uint32_t chunk = slot + place.thread * 16 + place.warp * ((kNeighbours - 1) * 512);
#pragma unroll
      for (int step = 0; step < C::kSteps; step += Place<C>::kRowStep) {
#pragma unroll
        for (int i = 0; i < kNeighbours; ++i) {
          const int tile = i / C::kPlanes, plane = i % C::kPlanes;
          if (tile > 0 && tile * 64 >= columns) continue;
          const uint32_t target = chunk + step * C::kStepBytes + i * 512;
          const char* const source = weight + tile * (C::kPlanes * 512) + plane * 16;
          if constexpr (kWeights && C::kReadsOnce) {
            copy_async(target, source, evict_first_policy());
          } else if constexpr (kWeights) {
            copy_async(target, source);
          }
        }
        weight += weight_bytes;
        // Row by row: from the first, ptxas takes three instructions for each.
        if constexpr (C::kHasRegisters) weight = opaque(weight);
      }
      if constexpr (kRest) {
#pragma unroll
        for (int row = 0; row < C::kTokens; row += Place<C>::kRows) {
          if (row < rows) {
#pragma unroll
            for (int chunk = 0; chunk < Place<C>::kChunkRow; chunk += Place<C>::kRowThreads) {
              copy_async(slot + place.copied_tokens + (row * Place<C>::kChunkRow + chunk) * 16,
                         tokens + int64_t{row / Place<C>::kRows} * token_bytes + chunk * 16);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < Place<C>::kGroupCopies; ++i) {
          if (place.copies_group[i]) copy_async(slot + place.copied_group[i], group_at(p, place, i));
        }
        tokens += C::kTile.unit() * 2;
      }
      ++unit, --left;
      open<kRest>(p, place);
    }
    if (kRest) commit_copies();
  }
};

}  // namespace sglk::marlin_gemm
