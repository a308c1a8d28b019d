// The Marlin GEMM of 9 tokens and more with what sm_90a has: see marlin_gemm.cu for the formula and the
// layouts.
//
// outᵀ = Wᵀ · aᵀ again: the weights are the register operand of wgmma, made by the warp that multiplies with
// them, the tokens its operand in shared memory. Warp w of a warpgroup takes the 32 columns from 32w, which
// are two words of each lane's four, so that no weight is made twice: one m64 product for each of the two.
// (Of 16 tokens it takes half of its pairs of columns from the warp's that has the other two words:
// odd_half.)
//
//   block: `tokens` × 256 columns     warpgroup 0: a thread of each warp copies, by the copy engine
//                                     others: 128 columns each; two are a team (of 128 columns, one is)
//   unit: 128 rows                    two of [tokens, 64] swizzled · weights · scales · zeros · barriers
//
// Of 128 tokens there is one team: while the products of half a unit run, the weights of the next half are
// made, into registers of their own. Of fewer, teams take turns with the units, and some make weights while
// others multiply; each then adds up, and stores, its share of the sums of all. Up to 32 tokens, where
// a group is a unit (kScalesSums), weights are not scaled, but the sums of a group when it ends.
// The work is shared as in marlin_gemm.cu, but that many parts of a tile are added up a tree (max_flat).
#pragma once

#include "common/dequantize.cuh"
#include "common/mma.cuh"
#include "common/pdl.cuh"
#include "common/wgmma.cuh"
#include "marlin_gemm_sm90_copy.cuh"
#include "marlin_gemm_sm90_sums.cuh"

namespace sglk::marlin_gemm::sm90 {

// What a lane has of the scales and zero points of a group, for its columns i, i + 8, i + 16 and i + 24 of
// 32.
struct RawGroup {
  uint2 scales;  // pairs
  uint32_t zeros;
};

// A lane's weights of a batch.
template <class C>
using Raw = uint2[C::kSteps];

// Where a lane reads in a stage.
template <class C>
struct Place {
  uint32_t words, scales, zeros;
  int zero_shift;
  int groups, group_shift;  // of Params

  __device__ __forceinline__ Place(const Params& p, int part, int warp, int lane) {
    // Opaque: otherwise some are computed anew in each unit.
    const int block = part * 2 + warp / 2, i = lane / 4, odd = odd_half<C>(warp, i);  // of 64 columns
    words = opaque(C::kWeights + block * 512 + lane * 16 + odd * 8);
    // Permuted per 64 columns, or per 32 where there is a single group.
    scales = opaque(C::kScales + block * 128 + (p.groups > 1 ? i * 16 + odd * 8 : odd * 64 + i / 2 * 16));
    zero_shift = opaque(odd * 8);
    zeros = opaque(C::kZeros + block * 32 + i * 4);
    groups = p.groups, group_shift = p.group_shift;
    if constexpr (!C::kIsTight) groups = uniform(groups), group_shift = uniform(group_shift);
  }
};

template <class C>
__device__ __forceinline__ uint2 read_scales(const Place<C>& place, uint32_t stage, int row) {
  const uint32_t scales = stage + place.scales + row * (C::kWidth * 2);
  if (C::kScalesSums || place.groups > 1) return load_shared_pair(scales);
  const uint4 v = load_shared(scales);
  const int select = threadIdx.x / 4 % 2 ? 0x7632 : 0x5410;
  return {__byte_perm(v.x, v.y, select), __byte_perm(v.z, v.w, select)};
}
template <class C>
__device__ __forceinline__ uint32_t read_zeros(const Place<C>& place, uint32_t stage, int row) {
  return load_shared_word(stage + place.zeros + row * (C::kWidth / 2));
}
template <class C>
__device__ __forceinline__ RawGroup read_group(const Place<C>& place, uint32_t stage, int row) {
  return {read_scales<C>(place, stage, row), read_zeros<C>(place, stage, row)};
}

// Without zero points all are 8, in every stage.
template <class C>
__device__ __forceinline__ void fill_zeros(const Ring& ring) {
  constexpr int kWords = C::kTile.zero_bytes() / 4;
  for (int i = threadIdx.x - 128; i < C::kStages * kWords; i += C::kConsumers) {
    store_shared_word(ring.base + i / kWords * C::kTile.stage_bytes() + C::kZeros + i % kWords * 4,
                      0x88888888u);
  }
}

template <class C>
__device__ __forceinline__ void read_words(Raw<C>& raw, const Place<C>& place, uint32_t stage, int batch) {
#pragma unroll
  for (int step = 0; step < C::kSteps; ++step) {
    raw[step] = load_shared_pair(stage + place.words + (batch * C::kSteps + step) * (C::kWidth * 8));
  }
}

// Scale and zero_offset of a lane's four columns, each twice in 32 bits.
struct Group {
  uint32_t scale[4];
  ZeroOffset offset[4];
};

template <class T>
__device__ __forceinline__ void unpack_group(Group& group, const RawGroup& raw, int shift) {
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    const ZeroOffset pair = zero_offset<T>(raw.zeros >> shift, b == 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      group.scale[2 * b + half] = twice(b == 0 ? raw.scales.x : raw.scales.y, half);
      group.offset[2 * b + half] = {twice(pair.low, half), twice(pair.high, half)};
    }
  }
}

template <class C>
using Weights = uint32_t[C::kSteps][2][4];  // A fragments of a lane's two words

template <class C>
__device__ __forceinline__ void make_weights(uint32_t (&w)[2][4], const uint2& raw, const Group& group) {
  using T = typename C::T;
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    const uint32_t x = b == 0 ? raw.x : raw.y;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      w[b][e] = nibbles_less<T>(x >> (e % 2 * 8), e >= 2, group.offset[2 * b + e % 2]);
      if (!C::kScalesSums) w[b][e] = multiply<T>(w[b][e], group.scale[2 * b + e % 2]);
    }
  }
}

// Adds the sums of a group, scaled, to the sums.
template <class C>
__device__ __forceinline__ void close_group(Sums<C>& sum, const Sums<C>& group, const RawGroup& raw) {
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    const float2 scale = to_floats<typename C::T>(b == 0 ? raw.scales.x : raw.scales.y);
#pragma unroll
    for (int i = 0; i < C::kTokens / 2; ++i) sum[b][i] += (i % 4 < 2 ? scale.x : scale.y) * group[b][i];
  }
}

// All lanes have read before one of them arrives, which electing it does not order.
__device__ __forceinline__ void release(uint32_t empty) {
  __syncwarp();
  if (elect_lane()) arrive(empty);
}

// Adds to the sums what the next `left` units of the team make, one at least. group_sum: zeros, for the sums
// of a group (made in here they are 8 to 16 instructions more). ahead: the stage that the team opened last.
template <class C>
__device__ __forceinline__ void multiply_units(Sums<C>& sum, Sums<C>& group_sum, const Ring& ring,
                                               const Place<C>& place, Stage<C>& ahead, int left) {
  using T = typename C::T;
  Weights<C> w[C::kBuffers];
  Raw<C> raw;
  RawGroup raw_group;
  Group group;
  uint32_t done = 0;  // `empty` of the stage whose products were committed last, and may not be complete
  const auto open_unit = [&] {
    ahead.advance(ring, C::kTeams);
    wait_barrier(ahead.full(), ahead.parity);
    read_words<C>(raw, place, ahead.data, 0);
    if (!C::kIsTight) raw_group.zeros = read_zeros<C>(place, ahead.data, 0);
    if (!C::kIsTight && !C::kScalesSums) raw_group.scales = read_scales<C>(place, ahead.data, 0);
  };
  open_unit();
  bool is_over;
#pragma unroll 1
  do {
    is_over = --left == 0;
    const Stage<C> stage = ahead;
    const uint64_t stage_tokens = operand_descriptor(stage.data);
#pragma unroll
    for (int batch = 0; batch < C::kBatches; ++batch) {
      auto& now = w[batch % C::kBuffers];
      const bool is_last = batch + 1 == C::kBatches;
#pragma unroll
      for (int step = 0; step < C::kSteps; ++step) {
        // A group begins every two steps, every four, or with the unit.
        const int pair = (batch * C::kSteps + step) / 2;
        if (step == 0 && batch == 0 && !C::kIsTight) {
          unpack_group<T>(group, raw_group, place.zero_shift);
        } else if (!C::kScalesSums &&
                   ((step == 0 && pair % 2 == 0 && (C::kIsTight || place.group_shift < 2)) ||
                    (step % 2 == 0 && pair % 2 == 1 && place.group_shift == 0))) {
          unpack_group<T>(group, read_group<C>(place, stage.data, pair >> place.group_shift),
                          place.zero_shift);
        }
        make_weights<C>(now[step], raw[step], group);
      }
      if (!C::kIsTight && !is_last) read_words<C>(raw, place, stage.data, batch + 1);
      constexpr int kHalfBatches = C::kBatches / 2;
      const uint64_t tokens = stage_tokens + batch / kHalfBatches * (C::kHalfTokens / 16) +
                              batch % kHalfBatches * (C::kSteps * 2);
      open_products();
#pragma unroll
      for (int step = 0; step < C::kSteps; ++step) {
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          multiply_async<T, C::kTokens>(C::kScalesSums ? group_sum[b] : sum[b], now[step][b],
                                        tokens + step * 2, !(C::kScalesSums && batch == 0 && step == 0));
        }
      }
      commit_products();
      if (C::kIsTight && !is_last) read_words<C>(raw, place, stage.data, batch + 1);
      if (is_last && C::kScalesSums) raw_group.scales = read_scales<C>(place, stage.data, 0);
      if (is_last && !is_over) open_unit();
      wait_products<C::kBuffers - 1>();
      if (C::kBuffers > 1) {
        if (batch == 0 && done != 0) release(done);
      } else if (is_last) {
        if constexpr (C::kScalesSums) close_group<C>(sum, group_sum, raw_group);
        release(stage.empty());
      }
    }
    done = stage.empty();
  } while (!is_over);
  if (C::kBuffers > 1) {
    wait_products<0>();
    release(done);
  }
}

template <class C>
__device__ __forceinline__ void consume(const Params& p, const Ring& ring, int block) {
  const int warpgroup = uniform(threadIdx.x / 128 - 1);
  const int warp = uniform(threadIdx.x / 32 % 4);
  if (threadIdx.x == 128) {
    for (int i = 0; i < C::kStages; ++i) {
      const Stage<C> stage = {ring.base + i * C::kTile.stage_bytes()};
      init_barrier(stage.full(), kSm90Producers);
      init_barrier(stage.empty(), C::kConsumers / C::kTeams / 32);
    }
    init_barrier(ring.parts, 1);
    fence_barriers();
  }
  if (p.zeros == nullptr) fill_zeros<C>(ring);
  __syncthreads();
  take_registers<C::kTeams == 1 ? 232 : 112>();
  const int start = uniform(first_unit<C>(p, block));
  const int last = uniform(p.partition.first(block + 1));
  const int part = warpgroup % C::kParts, team = C::kTeams == 1 ? 0 : warpgroup / C::kParts;
  const Place<C> place(p, part, warp, threadIdx.x % 32);
  Target next = {};
  if (C::kFindsEarly && start < last) next = Target::of(p, p.partition.tile.divide(start));
  wait_for_predecessor();
  // That the team opened last: before the first its own.
  Stage<C> ahead = {ring.base + static_cast<uint32_t>(team - C::kTeams) * C::kTile.stage_bytes()};
  // How many of the block's units before this one are the team's: of a piece as many as by team_unit.
  const auto team_units_before = [&](int unit) { return (unit - start + C::kTeams - 1 - team) / C::kTeams; };
  for (int begin = start; begin < last;) {
    const int tile = p.partition.tile.divide(begin);
    const int tile_begin = tile * p.partition.tile.value, tile_end = tile_begin + p.partition.tile.value;
    const int end = min(last, tile_end);
    const Target target = next;
    Sums<C> sum = {}, group_sum = {};
    const int left = team_units_before(end) - team_units_before(begin);
    // Asked here: in the loop it takes 11 instructions a unit more, of 64 tokens.
    if (C::kTeams == 1 || left > 0) multiply_units<C>(sum, group_sum, ring, place, ahead, left);

    OwnSums<C> own;
    add_teams<C>(own, sum, ring, team);
    // Opaque: what is computed of it must not lie in registers during the products.
    const TileIndex index = C::kFindsEarly ? target.index : p.tiles.at(opaque(tile));
    const int m0 = index.m * C::kTokens + own_tokens<C>(team);
    const int n0 = index.n * C::kWidth + part * 128 + own_columns<C>(team);
    int place_in_tile = 0, blocks = 1;
    if (end - begin < p.partition.tile.value) {
      const int first = C::kFindsEarly ? target.first : p.partition.block_of(tile_begin);
      place_in_tile = block - first;
      blocks = (C::kFindsEarly ? target.last : p.partition.block_of(tile_end - 1)) - first + 1;
      collect<C>(p, ring, own, block, first, blocks, part, team, p.m - m0);
    }
    if (place_in_tile == 0) {
      store_tile<C>(p, own, m0, n0, uniform(opaque(threadIdx.x) / 32 % 4), opaque(threadIdx.x) % 32);
    } else {
      hand_over<C>(p, own, block, part, team, p.m - m0);
      const Parent parent = parent_of(place_in_tile, blocks, max_flat(C::kTokens));
      consumer_barrier<C>();
      if (threadIdx.x == 128)
        add_release(p.arrivals + block - place_in_tile + parent.place, 1 << parent.child);
    }
    begin = next_unit<C>(p, block, end);
    if (C::kFindsEarly && begin < last) next = Target::of(p, tile + 1);
  }
}

template <class C>
__device__ __forceinline__ void run(const Sm90Params& params) {
  const Params& p = params.common;
  Ring ring;
  // Computed anew, it would take five instructions a unit.
  ring.base = uniform((shared_address(dynamic_shared()) + 1023) & ~1023u);
  ring.parts = ring.base + C::kStages * C::kTile.stage_bytes();
  const int block = block_index();
  if (threadIdx.x >= 128) {
    consume<C>(p, ring, block);
  } else {
    produce<C>(params, ring, block);
  }
}

}  // namespace sglk::marlin_gemm::sm90
