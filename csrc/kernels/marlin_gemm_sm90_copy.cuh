// How the blocks of marlin_gemm_sm90.cuh are laid out, and how what they multiply comes to shared memory.
#pragma once

#include "common/mma.cuh"
#include "common/pdl.cuh"
#include "common/wgmma.cuh"
#include "marlin_gemm.h"

namespace sglk::marlin_gemm::sm90 {

constexpr int kUnitSteps = kSm90Unit / 16;

template <class T_, int kTokens_, int kStages_, int kTeams_, int kGroup_, int kWidth_>
struct Config {
  using T = T_;
  static constexpr int kTokens = kTokens_, kStages = kStages_, kTeams = kTeams_;
  static constexpr int kWidth = kWidth_, kParts = kWidth / 128;  // a warpgroup of a team has one
  static constexpr Sm90Tile kTile{kTokens, kStages, kTeams, kGroup_, kWidth};
  static constexpr int kConsumers = kTile.consumers();
  static constexpr bool kIsTight = kTokens == 128;  // sums and weights take nearly all registers
  static constexpr bool kScalesSums = kGroup_ != 0;
  static constexpr bool kIsSmall = kTokens == 16;
  static constexpr bool kHasDirect = has_direct(kTokens, true, false);
  static constexpr bool kFindsEarly = kIsSmall;  // as in marlin_gemm_copy.cuh
  // Stages whose weights are copied while the predecessor drains. What comes early holds up how its blocks
  // add up their parts: with all stages 16 to 64 tokens through small layers took 5 to 8 % longer (H200,
  // 2026-11-28).
  static constexpr int kEarly = (kTokens == 64 ? 2 : 4) * kTileN / kWidth;
  static_assert(kEarly <= kStages);
  // A stage is always the same team's: another's warp could wait for its next round while this one is not
  // there yet, and find the parity that it waits for.
  static_assert(kStages % kTeams == 0);
  // Weights of so many steps of k16 are made at once, a multiple of two; of so many batches they are kept.
  static constexpr int kSteps = kTeams == 1 || kIsSmall ? 4 : 2, kBatches = kUnitSteps / kSteps;
  static constexpr int kBuffers = kTeams == 1 ? 2 : 1;
  // Of a warp's sums of 16 columns × 8 tokens, 2 by kTokens / 8, a team gets so many.
  static constexpr int kOwn = kTeams == 1 ? 2 : 1, kOwnTokens = kTokens / 8 * 2 / kOwn / kTeams;
  static constexpr int kHalfTokens = kTile.token_bytes() / 2;
  static constexpr int kWeights = kTile.token_bytes();  // offsets in a stage
  static constexpr int kScales = kWeights + kTile.weight_bytes();
  static constexpr int kZeros = kScales + kTile.scale_bytes();
  static constexpr int kFull = kZeros + kTile.zero_bytes();  // barriers: the bytes of the stage are there,
  static constexpr int kEmpty = kFull + 8;                   // all warps that multiply are done with it
};

struct Ring {
  uint32_t base;   // of the first stage
  uint32_t parts;  // after the last, a barrier: the parts of other blocks are there (await_parts)
};

// The address of a stage, and the parity of the round through the ring.
template <class C>
struct Stage {
  uint32_t data, parity = 0;
  __device__ __forceinline__ uint32_t full() const { return data + C::kFull; }
  __device__ __forceinline__ uint32_t empty() const { return data + C::kEmpty; }
  __device__ __forceinline__ void advance(const Ring& ring, int stages) {
    data += stages * C::kTile.stage_bytes();
    const uint32_t wraps = data >= ring.parts;
    data -= wraps * (C::kStages * C::kTile.stage_bytes());
    parity ^= wraps;
  }
};

// Which half of a lane's four words of weights, whose columns are i + 8t, a warp takes: kIsSmall, the other
// one for every other pair of columns, so that sixteen lanes read from all banks. (Of more tokens that takes
// longer: stores of four bytes for eight, 2 to 5 %; H200, 2026-11-29.)
template <class C>
__device__ __forceinline__ int odd_half(int warp, int i) {
  return C::kIsSmall ? (warp ^ i / 2) & 1 : warp & 1;
}

template <class C>
__device__ __forceinline__ void consumer_barrier() {
  named_barrier<C::kConsumers>(1);
}

// What a block has of a tile: units of it, from its next one on.
struct Piece {
  TileIndex index;
  int unit, end;

  __device__ __forceinline__ Piece(const Params& p, int begin, int last) {
    const int tile = p.partition.tile.divide(begin), tile_begin = tile * p.partition.tile.value;
    index = p.tiles.at(tile);
    unit = begin - tile_begin;
    end = min(p.partition.tile.value, last - tile_begin);
  }
};

// Whether the block at this place of a tile gets the parts of all others, at once.
template <class C>
__device__ __forceinline__ bool has_all_parts(int place, int blocks) {
  return place == 0 && blocks > 1 && blocks <= max_flat(C::kTokens);
}

// Waits for the parts of the block's last tile, if it gets them all, while others still multiply: to find
// that they are there takes 0.3 us (o with 16 tokens 9.4 -> 9.05 us; H200, 2026-11-29).
template <class C>
__device__ __forceinline__ void await_parts(const Params& p, const Ring& ring, int block, int last) {
  if (C::kHasDirect && p.partition.is_whole()) return;
  const int tile_begin = p.partition.tile.divide(last - 1) * p.partition.tile.value;
  const int tile_end = tile_begin + p.partition.tile.value;
  const int first = p.partition.block_of(tile_begin), blocks = p.partition.block_of(tile_end - 1) - first + 1;
  if (!has_all_parts<C>(block - first, blocks)) return;
  while (load_acquire(p.arrivals + block) != (1 << (blocks - 1)) - 1) {
  }
  p.arrivals[block] = 0;
  arrive(ring.parts);
}

// One thread of each warp: starts a quarter of all copies of the block. (One thread for all was too slow, and
// so is what divides in the inner loop: 60 to 90 clocks a copy, more than the memory needs; H200,
// 2026-11-27.) It is elected: were it chosen by its number, each copy would be a loop over the lanes. By
// tensor maps: racecheck follows no other copies through an mbarrier.
template <class C>
__device__ __forceinline__ void produce(const Sm90Params& params, const Ring& ring, int block) {
  const Params& p = params.common;
  int begin = first_unit<C>(p, block);
  const int last = p.partition.first(block + 1);
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32);
  // Warps 0 and 1 copy half of the tokens each, 2 the scales, 3 the zero points.
  const bool has_tokens = warp < 2, has_group = warp == 2 || (warp == 3 && p.zeros != nullptr);
  const TensorMap* const map = warp < 2 ? &params.tokens : warp == 2 ? &params.scales : &params.zeros;
  const int group_bytes = warp == 2 ? C::kWidth * 2 : C::kWidth / 2;
  const uint32_t offset = has_tokens ? warp * C::kHalfTokens : warp == 2 ? C::kScales : C::kZeros;
  const int bytes = kSm90Rows * C::kWidth * 8 + (has_tokens  ? C::kHalfTokens
                                                 : has_group ? unit_groups_of(p.group_shift) * group_bytes
                                                             : 0);
  const uint64_t policy = p.tiles.m == 1 ? evict_first_policy() : evict_normal_policy();  // of weights
  Piece piece(p, begin, last);
  __syncthreads();  // others have set up the barriers meanwhile
  give_up_registers<C::kTeams == 1 ? 40 : 32>();
  if (!elect_lane()) return;

  bool is_first = true;
  Stage<C> stage = {ring.base};
  while (begin < last) {
    const int n0 = piece.index.n * C::kWidth, m0 = piece.index.m * C::kTokens;
    const int group_x = warp == 2 ? n0 : n0 / 8, end = piece.end;
    int unit = piece.unit;
    begin += end - unit;
    const auto copy_weights = [&](const Stage<C>& stage, int unit) {
      arrive_expect(stage.full(), bytes);
      copy_box(stage.data + C::kWeights + warp * (kSm90Rows * C::kWidth * 8), &params.weights, n0,
               unit * (kSm90Unit / 16) + warp * kSm90Rows, stage.full(), policy);
    };
    int early = 0;
    if (is_first) {  // as in marlin_gemm.cu: weights come while the predecessor drains
      early = min(C::kEarly, end - unit);
      Stage<C> next = stage;
#pragma unroll 1
      for (int i = 0; i < early; ++i) copy_weights(next, unit + i), next.advance(ring, 1);
      if (has_tokens || has_group) prefetch_map(map);
      wait_for_predecessor();
      let_successor_start();
      is_first = false;
    }
#pragma unroll 1
    for (; unit < end; ++unit) {
      if (early > 0) {
        --early;
      } else {
        wait_barrier(stage.empty(), stage.parity ^ 1);
        copy_weights(stage, unit);
      }
      if (has_tokens) {
        copy_box(stage.data + offset, map, unit * kSm90Unit + warp * 64, m0, stage.full());
      } else if (has_group) {
        copy_box(stage.data + offset, map, group_x, unit * 4 >> p.group_shift, stage.full());
      }
      stage.advance(ring, 1);
    }
    begin = next_unit<C>(p, block, begin);
    piece = Piece(p, begin, last);
  }
  if (warp == 0) await_parts<C>(p, ring, block, last);
}

}  // namespace sglk::marlin_gemm::sm90
