// The Marlin GEMM of 9 tokens and more with what sm_90a has: see marlin_gemm.cu for the formula and the
// layouts.
//
// outᵀ = Wᵀ · aᵀ again: the weights are the register operand of wgmma, made by the warp that multiplies with
// them, the tokens its operand in shared memory. Warp w of a warpgroup takes the 32 columns from 32w, which
// are two words of each lane's four, so that no weight is made twice: one m64 product for each of the two.
//
//   block: `tokens` × 256 columns     warpgroup 0: a thread of each warp copies, by the copy engine
//                                     others: 128 columns each; two are a team
//   unit: 128 rows                    two of [tokens, 64] swizzled · weights · scales · zero points
//
// Of 128 tokens there is one team: while the products of half a unit run, the weights of the next half are
// made, into registers of their own. Of fewer, two teams take turns with the units, and one makes weights
// while the other multiplies; each then adds up, and stores, half of the sums of both. Up to 32 tokens, where
// a group is a unit (kScalesSums), weights are not scaled, but the sums of a group when it ends.
// The work is shared as in marlin_gemm.cu, but that many parts of a tile are added up a tree (max_flat).
#pragma once

#include "common/dequantize.cuh"
#include "common/mma.cuh"
#include "common/pdl.cuh"
#include "common/wgmma.cuh"
#include "marlin_gemm.h"
#include "marlin_gemm_sums.cuh"

namespace sglk::marlin_gemm::sm90 {

constexpr int kUnitSteps = kSm90Unit / 16;

template <class T_, int kTokens_, int kStages_, int kTeams_, int kGroup_>
struct Config {
  using T = T_;
  static constexpr int kTokens = kTokens_, kStages = kStages_, kTeams = kTeams_;
  static constexpr Sm90Tile kTile{kTokens, kStages, kTeams, kGroup_};
  static constexpr int kConsumers = kTile.consumers();
  static constexpr bool kIsTight = kTokens == 128;  // sums and weights take nearly all registers
  static constexpr bool kScalesSums = kGroup_ != 0;
  static constexpr bool kFindsEarly = kTokens == 16;  // as in marlin_gemm_copy.cuh
  // Stages whose weights are copied while the predecessor drains. What comes early holds up how its blocks
  // add up their parts: with all stages 16 to 64 tokens through small layers took 5 to 8 % longer (H200,
  // 2026-11-28).
  static constexpr int kEarly = kTokens == 64 ? 2 : 4;
  static_assert(kEarly <= kStages);
  // A stage is always the same team's: another's warp could wait for its next round while this one is not
  // there yet, and find the parity that it waits for.
  static_assert(kStages % kTeams == 0);
  // Weights of so many steps of k16 are made at once, a multiple of two; of so many batches they are kept.
  static constexpr int kSteps = kTeams == 1 ? 4 : 2, kBatches = kUnitSteps / kSteps;
  static constexpr int kBuffers = kTeams == 1 ? 2 : 1;
  static constexpr int kOwn = 2 / kTeams;  // of a warp's two sums of 16 columns, those that a team gets
  static constexpr int kHalfTokens = kTile.token_bytes() / 2;
  static constexpr int kWeights = kTile.token_bytes();  // offsets in a stage
  static constexpr int kScales = kWeights + kTile.weight_bytes();
  static constexpr int kZeros = kScales + kTile.scale_bytes();
};

struct Ring {
  uint32_t base;   // of the first stage
  uint32_t full;   // barriers: the bytes of a stage are there
  uint32_t empty;  // all warps that multiply are done with it
};

// A place in the ring, and how often it was passed.
template <class C>
struct Slot {
  int index = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++index == C::kStages) index = 0, parity ^= 1;
  }
};

// Addresses of a stage and its barriers.
template <class C>
struct Stage {
  uint32_t data, barriers;
  Stage() = default;
  __device__ __forceinline__ Stage(const Ring& ring, unsigned index)
      : data(ring.base + index * C::kTile.stage_bytes()), barriers(ring.base + index * 8) {}
  __device__ __forceinline__ uint32_t full() const { return barriers + C::kStages * C::kTile.stage_bytes(); }
  __device__ __forceinline__ uint32_t empty() const { return full() + C::kStages * 8; }
};

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

// One thread of each warp: starts a quarter of all copies of the block. (One thread for all was too slow, and
// so is what divides in the inner loop: 60 to 90 clocks a copy, more than the memory needs; H200,
// 2026-11-27.) It is elected: were it chosen by its number, each copy would be a loop over the lanes. By
// tensor maps: racecheck follows no other copies through an mbarrier.
template <class C>
__device__ __forceinline__ void produce(const Sm90Params& params, const Ring& ring, int block) {
  const Params& p = params.common;
  int begin = p.partition.first(block);
  const int last = p.partition.first(block + 1);
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  // Warps 0 and 1 copy half of the tokens each, 2 the scales, 3 the zero points.
  const bool has_tokens = warp < 2, has_group = warp == 2 || (warp == 3 && p.zeros != nullptr);
  const TensorMap* const map = warp < 2 ? &params.tokens : warp == 2 ? &params.scales : &params.zeros;
  const int group_bytes = warp == 2 ? kTileN * 2 : kTileN / 2;
  const uint32_t offset = has_tokens ? warp * C::kHalfTokens : warp == 2 ? C::kScales : C::kZeros;
  const int bytes = kSm90Rows * kTileN * 8 + (has_tokens  ? C::kHalfTokens
                                              : has_group ? unit_groups_of(p.group_shift) * group_bytes
                                                          : 0);
  const uint64_t policy = p.tiles.m == 1 ? evict_first_policy() : evict_normal_policy();  // of weights
  Piece piece(p, begin, last);
  __syncthreads();  // others have set up the barriers meanwhile
  give_up_registers<C::kTeams == 1 ? 40 : 32>();
  if (!elect_lane()) return;

  bool is_first = true;
  Slot<C> slot;
  while (begin < last) {
    const int n0 = piece.index.n * kTileN, m0 = piece.index.m * C::kTokens;
    const int group_x = warp == 2 ? n0 : n0 / 8, end = piece.end;
    int unit = piece.unit;
    begin += end - unit;
    const auto copy_weights = [&](int slot, int unit) {
      const uint32_t full = ring.full + slot * 8;
      arrive_expect(full, bytes);
      copy_box(ring.base + slot * C::kTile.stage_bytes() + C::kWeights + warp * (kSm90Rows * kTileN * 8),
               &params.weights, n0, unit * (kSm90Unit / 16) + warp * kSm90Rows, full, policy);
    };
    int early = 0;
    if (is_first) {  // as in marlin_gemm.cu: weights come while the predecessor drains
      early = min(C::kEarly, end - unit);
#pragma unroll 1
      for (int i = 0; i < early; ++i) copy_weights(i, unit + i);
      if (has_tokens || has_group) prefetch_map(map);
      wait_for_predecessor();
      let_successor_start();
      is_first = false;
    }
#pragma unroll 1
    for (; unit < end; ++unit) {
      const uint32_t full = ring.full + slot.index * 8;
      const uint32_t target = ring.base + slot.index * C::kTile.stage_bytes() + offset;
      if (early > 0) {
        --early;
      } else {
        wait_barrier(ring.empty + slot.index * 8, slot.parity ^ 1);
        copy_weights(slot.index, unit);
      }
      if (has_tokens) {
        copy_box(target, map, unit * kSm90Unit + warp * 64, m0, full);
      } else if (has_group) {
        copy_box(target, map, group_x, unit * 4 >> p.group_shift, full);
      }
      slot.advance();
    }
    piece = Piece(p, begin, last);
  }
}

// What a lane has of the scales and zero points of a group, for its columns i, i + 8, i + 16 and i + 24 of
// the warp's 32.
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
  int groups, group_shift;  // of Params

  __device__ __forceinline__ Place(const Params& p, int half, int warp, int lane) {
    const int block = half * 2 + warp / 2, i = lane / 4;  // of 64 columns
    words = C::kWeights + block * 512 + lane * 16 + warp % 2 * 8;
    // Permuted per 64 columns, or per 32 where there is a single group.
    scales = C::kScales + block * 128 + (p.groups > 1 ? i * 16 + warp % 2 * 8 : warp % 2 * 64 + i / 2 * 16);
    zeros = C::kZeros + block * 32 + i * 4;
    groups = p.groups, group_shift = p.group_shift;
    if constexpr (!C::kIsTight) {  // the broadcast keeps them in registers
      groups = __shfl_sync(0xffffffffu, groups, 0), group_shift = __shfl_sync(0xffffffffu, group_shift, 0);
    }
  }
};

template <class C>
__device__ __forceinline__ uint2 read_scales(const Place<C>& place, uint32_t stage, int row) {
  const uint32_t scales = stage + place.scales + row * (kTileN * 2);
  if (C::kScalesSums || place.groups > 1) return load_shared_pair(scales);
  const uint4 v = load_shared(scales);
  const int select = threadIdx.x / 4 % 2 ? 0x7632 : 0x5410;
  return {__byte_perm(v.x, v.y, select), __byte_perm(v.z, v.w, select)};
}
template <class C>
__device__ __forceinline__ uint32_t read_zeros(const Place<C>& place, uint32_t stage, int row) {
  return load_shared_word(stage + place.zeros + row * (kTileN / 2));
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
    raw[step] = load_shared_pair(stage + place.words + (batch * C::kSteps + step) * (kTileN * 8));
  }
}

// Scale and zero_offset of a lane's four columns, each twice in 32 bits.
struct Group {
  uint32_t scale[4];
  ZeroOffset offset[4];
};

template <class T>
__device__ __forceinline__ void unpack_group(Group& group, const RawGroup& raw, int shift) {
  group.scale[0] = twice_low(raw.scales.x), group.scale[1] = twice_high(raw.scales.x);
  group.scale[2] = twice_low(raw.scales.y), group.scale[3] = twice_high(raw.scales.y);
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    const ZeroOffset pair = zero_offset<T>(raw.zeros >> shift >> 4 * b);
    group.offset[2 * b] = {twice_low(pair.low), twice_low(pair.high)};
    group.offset[2 * b + 1] = {twice_high(pair.low), twice_high(pair.high)};
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

// Of the warp's two times 16 columns, as [8 tokens][4], C fragments.
template <class C>
using Sums = float[2][C::kTokens / 2];

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

// Those that a team gets, which are all if there is one team.
template <class C>
using OwnSums = float[C::kOwn][C::kTokens / 2];

template <class C>
__device__ __forceinline__ void add_teams(OwnSums<C>& own, const Sums<C>& sum, const Ring& ring, int team) {
  if constexpr (C::kTeams == 1) {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
#pragma unroll
      for (int i = 0; i < C::kTokens / 2; ++i) own[b][i] = sum[b][i];
    }
  } else {
    constexpr int kChunks = C::kTokens / 8;
    // [team that gets them][four sums][thread of a team], after the barriers of the ring
    const uint32_t offset = ring.empty + C::kStages * 8 - shared_address(dynamic_shared());
    float4* const shared =
        reinterpret_cast<float4*>(dynamic_shared() + offset) + (opaque(threadIdx.x) - 128) % 256;
    consumer_barrier<C>();  // what was there has been read
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      float other[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = sum[0][i * 4 + e], y = sum[1][i * 4 + e];
        own[0][i * 4 + e] = team == 0 ? x : y;
        other[e] = team == 0 ? y : x;
      }
      shared[((1 - team) * kChunks + i) * 256] = {other[0], other[1], other[2], other[3]};
    }
    consumer_barrier<C>();
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const float4 x = shared[(team * kChunks + i) * 256];
      float* const to = own[0] + i * 4;
      to[0] += x.x, to[1] += x.y, to[2] += x.z, to[3] += x.w;
    }
  }
}

// Where a thread's own sums lie in a part: [half of the columns][16 columns of each warp][8 tokens][thread of
// a warpgroup].
template <class C>
__device__ __forceinline__ float4* part_of(const Params& p, int block, int half, int team) {
  return reinterpret_cast<float4*>(p.partial) + int64_t{block} * kPartSize<C> +
         half * (C::kTokens / 4 * 128) + team * C::kOwn * (C::kTokens / 8 * 128) + opaque(threadIdx.x) % 128;
}

template <class C>
__device__ __forceinline__ void hand_over(const Params& p, const OwnSums<C>& sum, int block, int half,
                                          int team, int rows) {
  float4* const part = part_of<C>(p, block, half, team);
#pragma unroll
  for (int j = 0; j < C::kTokens / 8; ++j) {
    if (j * 8 >= rows) break;
#pragma unroll
    for (int b = 0; b < C::kOwn; ++b) {
      const float* const x = sum[b] + j * 4;
      __stcg(part + (b * (C::kTokens / 8) + j) * 128, float4{x[0], x[1], x[2], x[3]});
    }
  }
}

// A thread has 16 loads of parts on their way at once: of 64 tokens at most, and of so many parts.
template <class C>
constexpr int kLoadedTiles = C::kTokens < 64 ? C::kTokens / 8 : 8;
template <class C>
constexpr int kLoadedParts = 16 / (kLoadedTiles<C> * C::kOwn);

// Adds up to kParts parts that lie one after the other, of which there are `count`.
template <class C, int kParts>
__device__ __forceinline__ void add_parts(OwnSums<C>& sum, const float4* part, int count, int rows) {
  constexpr int kTokenTiles = kLoadedTiles<C>;
#pragma unroll
  for (int j = 0; j < C::kTokens / 8; j += kTokenTiles) {
    float4 x[kParts][kTokenTiles][C::kOwn] = {};
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
        if (i >= count || (j + tile) * 8 >= rows) continue;
#pragma unroll
        for (int b = 0; b < C::kOwn; ++b) {
          x[i][tile][b] = __ldcg(part + i * kPartSize<C> + (j + tile + b * (C::kTokens / 8)) * 128);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
#pragma unroll
        for (int b = 0; b < C::kOwn; ++b) {
          float* const to = sum[b] + (j + tile) * 4;
          const float4& y = x[i][tile][b];
          to[0] += y.x, to[1] += y.y, to[2] += y.z, to[3] += y.w;
        }
      }
    }
    asm volatile("" ::: "memory");  // no more loads at once than there are registers
  }
}

// Adds the parts of a block's children, of the `blocks` from `first` on that share a tile. Where it has all
// others, it waits for them at once.
template <class C>
__device__ __forceinline__ void collect(const Params& p, OwnSums<C>& sum, int block, int first, int blocks,
                                        int half, int team, int rows) {
  const auto wait = [&](int flags) {
    if (threadIdx.x == 128) {
      while ((load_acquire(p.arrivals + block) & flags) != flags) {
      }
    }
    consumer_barrier<C>();
  };
  constexpr int kFlat = max_flat(C::kTokens);
  // Without children here it may have some in its next tile, whose flags may be up already.
  if (child_of(block - first, 0, blocks, kFlat) == 0) return;
  const float4* part = opaque(part_of<C>(p, block + 1, half, team));  // of the first child
  if (blocks <= kFlat) {
    wait((1 << (blocks - 1)) - 1);
#pragma unroll 1
    for (int left = blocks - 1; left > 0; left -= kLoadedParts<C>) {
      add_parts<C, kLoadedParts<C>>(sum, part, left, rows);
      part += kLoadedParts<C> * kPartSize<C>;
    }
  } else {
#pragma unroll 1
    for (int child = 0; child_of(block - first, child, blocks, kFlat) > 0; ++child) {
      wait(1 << child);
      add_parts<C, 1>(sum, part, 1, rows);
      part += kPartSize<C> << child;
    }
  }
  if (threadIdx.x == 128) p.arrivals[block] = 0;
}

// n0: of the warp's own.
template <class C>
__device__ __forceinline__ void store_tile(const Params& p, const OwnSums<C>& sum, int m0, int n0, int lane) {
  using T = typename C::T;
#pragma unroll
  for (int b = 0; b < C::kOwn; ++b) {
    const int n = n0 + b * 16;
    if (n >= p.n) continue;
    const float bias[2] = {bias_at<T>(p, n + lane / 4), bias_at<T>(p, n + 8 + lane / 4)};
#pragma unroll
    for (int j = 0; j < C::kTokens / 8; ++j) {
      const float* const x = sum[b] + j * 4;
      // Transposed, lane / 4 is the token; the lane has two neighbouring columns of the first eight, and two
      // of the last. Even and odd lanes swap so that each stores eight bytes.
      constexpr float kScale = 1 / kIntegerUnit<T>;
      uint32_t low = transpose(from_floats<T>(x[0] * kScale + bias[0], x[1] * kScale + bias[0]));
      uint32_t high = transpose(from_floats<T>(x[2] * kScale + bias[1], x[3] * kScale + bias[1]));
      const bool is_odd = lane % 2;
      const uint32_t other = __shfl_xor_sync(0xffffffffu, is_odd ? low : high, 1);
      const uint2 four = is_odd ? uint2{other, high} : uint2{low, other};
      const int m = m0 + j * 8 + lane / 4;
      if (m < p.m) {
        T* const out = static_cast<T*>(p.out) + m * p.out_stride + n + is_odd * 8 + lane % 4 / 2 * 4;
        if (p.out_stride % 4 == 0) {
          *reinterpret_cast<uint2*>(out) = four;
        } else {
          reinterpret_cast<uint32_t*>(out)[0] = four.x;
          reinterpret_cast<uint32_t*>(out)[1] = four.y;
        }
      }
    }
  }
}

template <class C>
__device__ __forceinline__ void consume(const Params& p, const Ring& ring, int block) {
  using T = typename C::T;
  // The broadcasts tell the compiler that a warp does not diverge on these.
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128 - 1, 0);
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32 % 4, 0);
  if (threadIdx.x == 128) {
    for (int i = 0; i < C::kStages; ++i) {
      init_barrier(ring.full + i * 8, kSm90Producers);
      init_barrier(ring.empty + i * 8, C::kConsumers / C::kTeams / 32);
    }
    fence_barriers();
  }
  if (p.zeros == nullptr) fill_zeros<C>(ring);
  __syncthreads();
  take_registers<C::kTeams == 1 ? 232 : 112>();
  int begin = __shfl_sync(0xffffffffu, p.partition.first(block), 0);
  const int last = __shfl_sync(0xffffffffu, p.partition.first(block + 1), 0);
  const int column_half = warpgroup % 2, team = C::kTeams == 1 ? 0 : warpgroup / 2;
  const Place<C> place(p, column_half, warp, threadIdx.x % 32);
  const int zero_shift = warp % 2 * 8;
  const auto release = [&](uint32_t empty) {
    __syncwarp();  // all lanes have read before one of them arrives, which electing it does not order
    if (elect_lane()) arrive(empty);
  };
  Target next = {};
  if (C::kFindsEarly && begin < last) next = Target::of(p, p.partition.tile.divide(begin));
  wait_for_predecessor();
  unsigned ahead = team;  // units from the block's first to the next that the team opens
  int turn = team;        // and from the next piece's first
  while (begin < last) {
    const int tile = p.partition.tile.divide(begin);
    const int tile_begin = tile * p.partition.tile.value, tile_end = tile_begin + p.partition.tile.value;
    const int end = min(last, tile_end);
    const Target target = next;
    Sums<C> sum = {}, group_sum = {};
    Weights<C> w[C::kBuffers];
    Raw<C> raw;
    RawGroup raw_group;
    Group group;
    Stage<C> next_stage;
    uint32_t done = 0;  // `empty` of the stage whose products were committed last, and may not be complete
    const auto open_unit = [&] {
      next_stage = Stage<C>(ring, ahead % C::kStages);
      wait_barrier(next_stage.full(), ahead / C::kStages % 2);
      ahead += C::kTeams;
      read_words<C>(raw, place, next_stage.data, 0);
      if (!C::kIsTight) raw_group.zeros = read_zeros<C>(place, next_stage.data, 0);
      if (!C::kIsTight && !C::kScalesSums) raw_group.scales = read_scales<C>(place, next_stage.data, 0);
    };
    int left = (end - begin - turn + C::kTeams - 1) / C::kTeams;  // units of the team
    turn += left * C::kTeams - (end - begin);
    if (C::kTeams == 1 || left > 0) open_unit();
    bool goes_on = left > 0;
#pragma unroll 1
    while (goes_on) {
      goes_on = --left > 0;
      const Stage<C> current = next_stage;
      const uint32_t stage = current.data;
      const uint64_t stage_tokens = operand_descriptor(stage);
#pragma unroll
      for (int batch = 0; batch < C::kBatches; ++batch) {
        auto& now = w[batch % C::kBuffers];
        const bool is_last = batch + 1 == C::kBatches;
#pragma unroll
        for (int step = 0; step < C::kSteps; ++step) {
          // A group begins every two steps, every four, or with the unit.
          const int pair = (batch * C::kSteps + step) / 2;
          if (step == 0 && batch == 0 && !C::kIsTight) {
            unpack_group<T>(group, raw_group, zero_shift);
          } else if (!C::kScalesSums &&
                     ((step == 0 && pair % 2 == 0 && (C::kIsTight || place.group_shift < 2)) ||
                      (step % 2 == 0 && pair % 2 == 1 && place.group_shift == 0))) {
            unpack_group<T>(group, read_group<C>(place, stage, pair >> place.group_shift), zero_shift);
          }
          make_weights<C>(now[step], raw[step], group);
        }
        if (!C::kIsTight && !is_last) read_words<C>(raw, place, stage, batch + 1);
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
        if (C::kIsTight && !is_last) read_words<C>(raw, place, stage, batch + 1);
        if (is_last && C::kScalesSums) raw_group.scales = read_scales<C>(place, stage, 0);
        if (is_last && goes_on) open_unit();
        wait_products<C::kBuffers - 1>();
        if (C::kBuffers > 1) {
          if (batch == 0 && done != 0) release(done);
        } else if (is_last) {
          if constexpr (C::kScalesSums) close_group<C>(sum, group_sum, raw_group);
          release(current.empty());
        }
      }
      done = current.empty();
    }
    if (C::kBuffers > 1) {
      wait_products<0>();
      release(done);
    }

    OwnSums<C> own;
    add_teams<C>(own, sum, ring, team);
    // Opaque: what is computed of it must not lie in registers during the products.
    const TileIndex index = C::kFindsEarly ? target.index : p.tiles.at(opaque(tile));
    const int m0 = index.m * C::kTokens, n0 = index.n * kTileN + column_half * 128 + opaque(warp) * 32;
    int place_in_tile = 0, blocks = 1;
    if (end - begin < p.partition.tile.value) {
      const int first = C::kFindsEarly ? target.first : p.partition.block_of(tile_begin);
      place_in_tile = block - first;
      blocks = (C::kFindsEarly ? target.last : p.partition.block_of(tile_end - 1)) - first + 1;
      collect<C>(p, own, block, first, blocks, column_half, team, p.m - m0);
    }
    if (place_in_tile == 0) {
      store_tile<C>(p, own, m0, n0 + team * 16, opaque(threadIdx.x) % 32);
    } else {
      hand_over<C>(p, own, block, column_half, team, p.m - m0);
      const Parent parent = parent_of(place_in_tile, blocks, max_flat(C::kTokens));
      consumer_barrier<C>();
      if (threadIdx.x == 128)
        add_release(p.arrivals + block - place_in_tile + parent.place, 1 << parent.child);
    }
    begin = end;
    if (C::kFindsEarly && begin < last) next = Target::of(p, tile + 1);
  }
}

template <class C>
__device__ __forceinline__ void run(const Sm90Params& params) {
  const Params& p = params.common;
  Ring ring;
  // The broadcast keeps the address in a register: computed anew, it takes five instructions a unit.
  ring.base = __shfl_sync(0xffffffffu, (shared_address(dynamic_shared()) + 1023) & ~1023u, 0);
  ring.full = ring.base + C::kStages * C::kTile.stage_bytes();
  ring.empty = ring.full + C::kStages * 8;
  // A block waits for those after it in the list, which therefore come first in the grid.
  const int block = gridDim.x - 1 - blockIdx.x;
  if (threadIdx.x >= 128) {
    consume<C>(p, ring, block);
  } else {
    produce<C>(params, ring, block);
  }
}

}  // namespace sglk::marlin_gemm::sm90
