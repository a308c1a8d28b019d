// out = a · W for W quantized in Marlin tiles, fp16 and bf16, sm_80 and later.
//
//   W[k, n] = (Q[k, n] − Z[g, n]) · S[g, n]    g = k / group_size, or g_idx[k]
//
// Q: 4 bits (Z given, or 8), 8 bits (Z = 128), or float8 e4m3 (no Z). Sums are fp32. Nothing is added
// atomically: results are equal bit by bit over repeats.
//
// The product is computed transposed, outᵀ = Wᵀ · aᵀ: 16 columns of W are the rows of an mma and 8 tokens its
// columns, so that one token costs no more than half an mma tile, and a lane's sums belong to the columns
// whose scales it holds.
//
//   block: a tile of `m` tokens × 256 columns, a piece of its rows      warp: all tokens × 64 columns
//
//                4 warps of 64 columns
//              ┌─────┬─────┬─────┬─────┐      A lane's 16 (8 bit: 32) bytes of a 16 × 64 tile of weights are
//    team 0    │     │     │     │     │      its A fragments of four m16 tiles; lane group i = lane / 4 owns
//              ├─────┼─────┼─────┼─────┤      the columns i + 8t, whose scales are 16 consecutive bytes and
//    team 1    │     │     │     │     │      whose zero points are one word.
//      ⋮       └─────┴─────┴─────┴─────┘
//  (pieces of the rows)                       From 32 tokens on, 8 warps of 32 columns: two share a tile, and
//                                             each takes half of a lane's bytes. 128 tokens: one team.
//
// More warps of fewer columns hide each other's latencies (a scheduler needs four for that); a warp of more
// tokens makes fewer weights for as many products.
//
// Few tokens (kScalesSums): sums of a group are scaled when the group ends. Many tokens: weights are scaled,
// and rounded to the type of a. In bf16, weights of 4 bits are 1/64 of what they are (dequantize.cuh), or
// with up to 16 tokens (kIsRaw) nibbles as they lie there, which the last scaling makes good.
//
// A block owns a piece of the list of all tiles' units (marlin_gemm.h). What it has of a tile that an earlier
// block began goes to `partial`; that block adds up all parts in the order of k.
#include "marlin_gemm.h"

#include "common/dequantize.cuh"
#include "common/mma.cuh"
#include "common/pdl.cuh"
#include "marlin_gemm_copy.cuh"
#include "marlin_gemm_sums.cuh"

namespace sglk::marlin_gemm {

// The scales and zero points of a lane's columns, 8 or 4, as they lie in memory.
template <class C>
struct RawGroup {
  uint32_t scales[C::kColumnTiles];  // columns 2j and 2j + 1
  uint32_t zeros;
};

// row: the group's among those of its unit.
template <class C>
__device__ __forceinline__ RawGroup<C> load_group(const Params& p, const Place<C>& place, uint32_t slot,
                                                  int row) {
  RawGroup<C> raw;
  const uint32_t scales = slot + place.scales + row * (kTileN * 2);
  if (!has_one_group<C>(p)) {
    load_shared<C::kColumnTiles>(raw.scales, scales);
  } else {  // column i + 8t, permuted per 32: the half i % 2 of word t % 4 of the chunk i / 2
    const int half = place.lane / 4 % 2 ? 0x7632 : 0x5410;
#pragma unroll
    for (int j = 0; j < C::kColumnTiles; j += 2) {
      uint32_t chunk[4];
      load_shared<4>(chunk, scales + j * 32);
      raw.scales[j] = __byte_perm(chunk[0], chunk[1], half);
      raw.scales[j + 1] = __byte_perm(chunk[2], chunk[3], half);
    }
  }
  if constexpr (C::kWeight == Weight::kInt4) {
    raw.zeros = load_shared_word(slot + place.zeros + row * (kTileN / 2)) >> (place.warp % C::kSharers * 8);
  }
  return raw;
}

// Without zero points all are 8, in every slot of the ring.
template <class C>
__device__ __forceinline__ void fill_zeros(const Place<C>& place, uint32_t ring) {
  constexpr int kWords = C::kTile.zero_bytes() / 4;
  for (int i = place.thread; i < C::kStages * kWords; i += C::kTeamThreads) {
    store_shared_word(ring + i / kWords * C::kUnitBytes + C::kZeroOffset + i % kWords * 4, 0x88888888u);
  }
}

// Of the groups of a unit, that of a step; without a shift where one or two leave the choice.
template <class C>
__device__ __forceinline__ int group_row(const Params& p, int step) {
  const int shift = group_shift<C>(p);
  return C::kSteps <= 4 ? (shift == 0 ? step / 2 : 0) : step / 2 >> shift;
}

// Whether a group ends with a step, the second of a pair. group_mask: the pairs of a group, less one.
template <class C>
__device__ __forceinline__ bool ends_group(int group_mask, int unit, int step) {
  return ((unit * C::kPairs + step / 2 + 1) & group_mask) == 0;
}

// What weights are scaled by: scale and zero_offset of a lane's columns, each twice in 32 bits.
template <class C>
struct Group {
  uint32_t scale[2 * C::kColumnTiles];
  ZeroOffset offset[2 * C::kColumnTiles];
};

template <class C>
__device__ __forceinline__ void unpack_group(Group<C>& group, const RawGroup<C>& raw) {
#pragma unroll
  for (int j = 0; j < C::kColumnTiles; ++j) {
    group.scale[2 * j] = twice_low(raw.scales[j]);
    group.scale[2 * j + 1] = twice_high(raw.scales[j]);
    if constexpr (C::kWeight == Weight::kInt4) {
      const ZeroOffset pair = zero_offset<typename C::T>(raw.zeros >> (4 * j));
      group.offset[2 * j] = {twice_low(pair.low), twice_low(pair.high)};
      group.offset[2 * j + 1] = {twice_high(pair.low), twice_high(pair.high)};
    }
  }
}

// Act-order: the scales of a lane's columns in its four rows: r, r + 1, r + 8 and r + 9, r = k0 + 2 (lane %
// 4).
using RowScales = uint32_t[4][4];

__device__ __forceinline__ void load_row_scales(const Params& p, RowScales& rows, int k0,
                                                const uint16_t* scales, int lane) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int k = k0 + 2 * (lane % 4) + e % 2 + 8 * (e / 2);
    const int g = min(max(p.g_idx[k], 0), p.groups - 1);
    const uint4 v = *reinterpret_cast<const uint4*>(scales + int64_t{g} * p.n);
    rows[e][0] = v.x, rows[e][1] = v.y, rows[e][2] = v.z, rows[e][3] = v.w;
  }
}

// What a lane holds of a step's weights.
template <class C>
using Words = uint32_t[C::kWords];

// Part e of the A fragment of the 16 columns from 16u, column 16u + i + 8 (e % 2), rows of k from 8 (e / 2)
// on: less its zero point, and scaled where sums are not.
template <class C>
__device__ __forceinline__ uint32_t weight_part(const Words<C>& words, const Group<C>& group, int u, int e) {
  using T = typename C::T;
  const int t = 2 * u + e % 2;
  if constexpr (C::kIsRaw) return raw_nibbles(words[u] >> (e % 2 * 8), e >= 2);
  uint32_t w;
  if constexpr (C::kWeight == Weight::kInt4) {
    const uint32_t x = words[u] >> (e % 2 * 8);
    w = nibbles_less<T>(x, e >= 2, C::kIsActOrder ? zero_offset<T>(0x00080008) : group.offset[t]);
  } else {
    const uint32_t x = words[t];
    if constexpr (C::kWeight == Weight::kInt8) {
      w = e < 2 ? centred_bytes<T, true>(x) : centred_bytes<T, false>(x);
    } else {
      w = e < 2 ? float8_bytes<T, true>(x) : float8_bytes<T, false>(x);
    }
  }
  if constexpr (!C::kScalesSums && !C::kIsActOrder) w = multiply<T>(w, group.scale[t]);
  return w;
}

template <class C>
struct Accumulators {
  Sums<C> sum;
  Sums<C> group;    // of the group at hand, not scaled
  float tokens[4];  // kIsRaw, but not kSharesTokenSums: the sums of its tokens
};

// The tokens of a step of k16, B fragments.
template <class C>
using Tokens = uint32_t[C::kTokenTiles][2];

template <class C>
__device__ __forceinline__ void load_words(Words<C>& words, const Place<C>& place, uint32_t slot, int step) {
#pragma unroll
  for (int i = 0; i < C::kWords; i += 4) {
    constexpr int kChunk = C::kWords < 4 ? C::kWords : 4;
    load_shared<kChunk>(words + i, slot + place.weights + step * C::kStepBytes + i / 4 * 512);
  }
}

// Those from 8j on, 16 if there are so many.
template <class C>
__device__ __forceinline__ void load_tokens(Tokens<C>& tokens, const Place<C>& place, uint32_t slot, int step,
                                            int j) {
  // A step is two chunks further. Slots are multiples of 256, so that the sum may come first, one for all
  // steps.
  const uint32_t first =
      C::kHasRegisters ? (slot + place.tokens) ^ step * 32 : slot + (place.tokens ^ step * 32);
  const uint32_t address = first + j * (8 * C::kSteps * 32);
  if constexpr (C::kTokenTiles == 1) {
    load_matrices(tokens[0], address);
  } else {
    uint32_t r[4];
    load_matrices(r, address);
    tokens[j][0] = r[0], tokens[j][1] = r[1], tokens[j + 1][0] = r[2], tokens[j + 1][1] = r[3];
  }
}

// The operands of a step.
template <class C>
struct Operands {
  Words<C> words;
  Tokens<C> tokens;

  __device__ __forceinline__ void load(const Place<C>& place, uint32_t slot, int step) {
    load_words<C>(words, place, slot, step);
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; j += 2) load_tokens<C>(tokens, place, slot, step, j);
  }
};

// Leaves in the slot the sums of its tokens over the warp's share of the steps. The B fragment of 16 tokens
// is an A fragment: of a product with ones, each column is the sums.
template <class C>
__device__ __forceinline__ void share_token_sums(const Place<C>& place, uint32_t slot) {
  constexpr int kOwnSteps = C::kSteps / C::kTile.team_warps();
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < kOwnSteps; ++i) {
    uint32_t tokens[4];
    load_matrices(tokens, (slot + place.summed_tokens) ^ i * 32);
    mma<typename C::T>(sums, tokens, kOnes, kOnes);
  }
  if (place.lane % 4 == 0) {
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; ++j) {  // of token 8j + lane / 4
      store_shared_word(slot + C::kTokenSumOffset + j * (8 * 16) + place.lane * 4 + place.warp * 4,
                        __float_as_uint(sums[2 * j]));
    }
  }
}

// The sums of a group's tokens: [j][h] is that of token 8j + 2 (lane % 4) + h.
template <class C>
using TokenSums = float[C::kTokenTiles][2];

// slot: of the unit.
template <class C>
__device__ __forceinline__ void take_token_sums(TokenSums<C>& sums, Accumulators<C>& acc,
                                                const Place<C>& place, uint32_t slot) {
  if constexpr (C::kSharesTokenSums) {
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint4 parts = load_shared(slot + C::kTokenSumOffset + place.lane % 4 * 32 + (j * 8 + h) * 16);
        sums[j][h] = (__uint_as_float(parts.x) + __uint_as_float(parts.y)) +
                     (__uint_as_float(parts.z) + __uint_as_float(parts.w));
      }
    }
  } else {
    float (&x)[4] = acc.tokens;
    const unsigned sum = __float_as_uint(x[0] + x[2]);  // of token lane / 4
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sums[0][h] = __uint_as_float(__shfl_sync(0xffffffffu, sum, threadIdx.x % 4 * 8 + h * 4));
    }
#pragma unroll
    for (float& y : x) y = 0.0f;
  }
}

// k, scales: the first row, and the scales of the lane's columns, for act-order.
template <class C>
__device__ __forceinline__ void multiply_step(const Params& p, Accumulators<C>& acc, const Group<C>& group,
                                              const Operands<C>& f, int k, const uint16_t* scales) {
  using T = typename C::T;
  RowScales row_scales;
  if constexpr (C::kIsActOrder) load_row_scales(p, row_scales, k, scales, threadIdx.x % 32);
  Tokens<C> tokens;
#pragma unroll
  for (int j = 0; j < C::kTokenTiles; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      tokens[j][h] = C::kIsRaw ? multiply<T>(f.tokens[j][h], kRawScale[h]) : f.tokens[j][h];
    }
  }
#pragma unroll
  for (int u = 0; u < C::kColumnTiles; ++u) {
    uint32_t w[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      w[e] = weight_part<C>(f.words, group, u, e);
      if constexpr (C::kIsActOrder) {
        // Of the rows r and r + 1 (or r + 8, r + 9) in the column i + 8t, t = 2u + e % 2.
        w[e] = multiply<T>(w[e], __byte_perm(row_scales[e / 2 * 2][u], row_scales[e / 2 * 2 + 1][u],
                                             e % 2 ? 0x7632 : 0x5410));
      }
    }
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; ++j) {
      mma<T>(C::kScalesSums ? acc.group[u][j] : acc.sum[u][j], w, tokens[j][0], tokens[j][1]);
    }
  }
  if constexpr (C::kIsRaw && !C::kSharesTokenSums) {
    // The B fragment of 8 tokens is an A fragment, whose rows are their first eight k, and then the others.
    static_assert(C::kTokenTiles == 1);
    mma(acc.tokens, f.tokens[0], kOnes);
  }
}

// Adds the scaled sums of a group that ends to the sums.
template <class C>
__device__ __forceinline__ void close_group(Accumulators<C>& acc, const RawGroup<C>& raw,
                                            const Place<C>& place, uint32_t slot) {
  TokenSums<C> tokens;
  if constexpr (C::kIsRaw) take_token_sums<C>(tokens, acc, place, slot);
#pragma unroll
  for (int u = 0; u < C::kColumnTiles; ++u) {
    const float2 scale = to_floats<typename C::T>(raw.scales[u]);
    float2 zero = {};
    if constexpr (C::kIsRaw) zero = raw_zeros(raw.zeros >> (4 * u));
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = acc.group[u][j][e];
        if constexpr (C::kIsRaw) x -= (e < 2 ? zero.x : zero.y) * tokens[j][e % 2];
        acc.sum[u][j][e] += (e < 2 ? scale.x : scale.y) * x;
        x = 0.0f;
      }
    }
  }
}

// The products of a team's `units` units from `unit` on, which lie in the ring; copies as many that come
// later.
template <class C>
__device__ __forceinline__ void multiply_units(const Params& p, Accumulators<C>& acc, Ring<C>& ring,
                                               Walk<C>& ahead, const Place<C>& place, int tile, int unit,
                                               int units) {
  if (units == 0) return;
  const uint16_t* scales = nullptr;
  if (C::kIsActOrder) {
    static_assert(!C::kIsActOrder || C::kColumns == 64);
    const int column = min(p.tiles.at(tile).n * kTileN + place.warp * 64, p.n - 64);
    scales = static_cast<const uint16_t*>(p.scales) + column + place.lane / 4 * 8;
  }
  const int group_mask = (1 << group_shift<C>(p)) - 1;
  Group<C> group = {};
  Operands<C> f[2];
  bool opens = true;  // a group
  await_unit<C>(place);
  f[0].load(place, ring.slot, 0);
  for (; units > 0; --units, ++unit) {
    const uint32_t slot = ring.slot;
    ahead.copy(p, place, ring.free_slot);
    if constexpr (C::kSharesTokenSums) share_token_sums<C>(place, slot);
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
      const int row = group_row<C>(p, step);
      const bool is_last_step = step + 1 == C::kSteps;
      bool closes = false;
      if (step % 2 == 1) {
        closes = ends_group<C>(group_mask, unit, step) || (C::kScalesSums && is_last_step && units == 1);
      }
      if constexpr (!C::kIsActOrder && !C::kIsRaw) {
        if (step % 2 == 0 && opens) unpack_group<C>(group, load_group<C>(p, place, slot, row));
      }
      RawGroup<C> raw;
      if (C::kScalesSums && closes) raw = load_group<C>(p, place, slot, row);
      if (!is_last_step) {
        f[(step + 1) % 2].load(place, slot, step + 1);
      } else {
        ring.free_slot = slot;
        ring.advance();
        if (units > 1) {
          await_unit<C>(place);
          f[0].load(place, ring.slot, 0);
        } else if (C::kSharesTokenSums) {
          team_barrier<C>(place.team);
        }
      }
      multiply_step<C>(p, acc, group, f[step % 2], (unit * C::kSteps + step) * 16, scales);
      if (C::kScalesSums && closes) close_group<C>(acc, raw, place, slot);
      if (step % 2 == 1) opens = closes;
    }
  }
}

// The same with many tokens, where the tensor cores must not wait: weights are made one fragment ahead,
// between the products, and the tokens of a step take the place of those that have served. What is read after
// the last step is of no use.
template <class C>
__device__ __forceinline__ void multiply_units_ahead(const Params& p, Sums<C>& sum, Ring<C>& ring,
                                                     Walk<C>& ahead, const Place<C>& place, int unit,
                                                     int units) {
  if (units == 0) return;
  constexpr int kColumnTiles = C::kColumnTiles, kTokenTiles = C::kTokenTiles;
  const int group_mask = (1 << group_shift<C>(p)) - 1;
  Group<C> group = {};
  Operands<C> f;
  await_unit<C>(place);
  f.load(place, ring.slot, 0);
  unpack_group<C>(group, load_group<C>(p, place, ring.slot, 0));
  uint32_t w[4];  // the fragment at hand
#pragma unroll
  for (int e = 0; e < 4; ++e) w[e] = weight_part<C>(f.words, group, 0, e);
  for (; units > 0; --units, ++unit) {
    ahead.copy(p, place, ring.free_slot);
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
      const int next_step = (step + 1) % C::kSteps;
#pragma unroll
      for (int u = 0; u < kColumnTiles; ++u) {
        const bool is_last = u + 1 == kColumnTiles;
        if (is_last) {
          if (next_step == 0) {
            ring.free_slot = ring.slot;
            ring.advance();
            await_unit<C>(place);
          }
          load_words<C>(f.words, place, ring.slot, next_step);
          if (step % 2 == 1 && ends_group<C>(group_mask, unit, step)) {
            const int row = group_row<C>(p, next_step);
            unpack_group<C>(group, load_group<C>(p, place, ring.slot, row));
          }
        }
        uint32_t next[4];
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j) {
          mma<typename C::T>(sum[u][j], w, f.tokens[j][0], f.tokens[j][1]);
          if (is_last && j % 2 == 1) load_tokens<C>(f.tokens, place, ring.slot, next_step, j - 1);
          constexpr int kEvery = kTokenTiles / 4;
          if (j % kEvery == kEvery - 1) {
            next[j / kEvery] = weight_part<C>(f.words, group, (u + 1) % kColumnTiles, j / kEvery);
          }
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) w[e] = next[e];
      }
    }
  }
}

// Every team passes as many barriers as the one with most units: racecheck takes threads that have passed
// different numbers of barriers as not ordered by the block's next.
template <class C>
__device__ __forceinline__ void equalize_barriers(int team, int before, int units) {
  const auto barriers = [](int units) {
    return units == 0 ? 0 : units + (C::kWorksAhead || C::kSharesTokenSums);
  };
  const int own = team_unit(team + 1, C::kTeams, before, units) - team_unit(team, C::kTeams, before, units);
  const int most = (units + C::kTeams - 1) / C::kTeams;
#pragma unroll 1
  for (int i = barriers(own); i < barriers(most); ++i) team_barrier<C>(team);
}

// A block's units of a tile.
struct Piece {
  int tile;
  int tile_begin, tile_end;  // units of the tile
  int begin, end;            // of the piece

  __device__ __forceinline__ Piece(const Params& p, int begin, int last)
      : tile(p.partition.tile.divide(begin)),
        tile_begin(tile * p.partition.tile.value),
        tile_end(tile_begin + p.partition.tile.value),
        begin(begin),
        end(min(last, tile_end)) {}
};

// A block waits for those after it in the list, which therefore come first in the grid.
__device__ __forceinline__ int block_index() { return gridDim.x - 1 - blockIdx.x; }

// Reports a block's part of its first tile, if another block began that, to the one that did. first: of the
// block's units. All threads have passed a barrier since they wrote the part.
__device__ __forceinline__ void report_part(const Params& p, int first) {
  const int tile_begin = Piece(p, first, first).tile_begin;
  if (threadIdx.x == 0 && first > tile_begin) {
    add_release(p.arrivals + p.partition.block_of(tile_begin), 1);
  }
}

// Adds the sums of all teams, and of all blocks where this one began the tile, and stores them; hands them
// over where it did not.
template <class C>
__device__ __forceinline__ void finish_piece(const Params& p, const Sums<C>& sum, const Place<C>& place,
                                             const Piece& piece, char* team_sums) {
  const int block = opaque(block_index()), first = p.partition.first(block);
  equalize_barriers<C>(place.team, piece.begin - first, piece.end - piece.begin);
  const bool reports_now = !C::kReportsLate || piece.end == p.partition.first(block + 1);
  if (piece.begin > first) {  // the sums that teams handed each other must have been read
    block_barrier<C>();
    if (C::kReportsLate && reports_now) report_part(p, first);
  }
  OwnSums<C> own = {};
  add_teams<C>(own, sum, place, team_sums);
  const TileIndex index = p.tiles.at(piece.tile);
  const int m0 = index.m * C::kTokens, n0 = index.n * kTileN + place.warp * C::kColumns, rows = p.m - m0;
  if (piece.begin > piece.tile_begin) {
    hand_over<C>(p, own, place, block, rows);
    if (reports_now) {
      block_barrier<C>();
      report_part(p, first);
    }
    return;
  }
  if (piece.end < piece.tile_end) {
    collect<C>(p, own, place, block, p.partition.block_of(piece.tile_end - 1), rows);
  }
  if (n0 < p.n) store_tile<C>(p, own, place, m0, n0);
}

template <class C>
__device__ __forceinline__ void run(const Params& p) {
  char* const shared = dynamic_shared();
  const Place<C> place(p);
  Ring<C> ring;
  const int team = C::kReadsOnce ? threadIdx.x / C::kTeamThreads : place.team;  // see copy_async
  ring.base = opaque(shared_address(shared) + team * (C::kStages * C::kUnitBytes));
  ring.slot = ring.free_slot = ring.base;
  char* const team_sums = shared + C::kTeams * C::kStages * C::kUnitBytes;

  const int last = p.partition.first(block_index() + 1);
  int begin = p.partition.first(block_index());
  Walk<C> ahead(p, place, begin, last);
  // The first weights come while the predecessor drains: nothing that lets its successor start early writes
  // weights (pdl.cuh).
  Walk<C> early = ahead;
  uint32_t slot = ring.base;
#pragma unroll 1
  for (int s = 0; s < C::kStages - 1; ++s) {
    early.template copy<true, false>(p, place, slot);
    slot += C::kUnitBytes;
  }
#pragma unroll
  for (int i = 0; i < Place<C>::kGroupCopies; ++i) {
    if (place.copies_group[i] && ahead.left > 0) prefetch_l2(ahead.group_at(p, place, i));
  }
  if (C::kWeight == Weight::kInt4 && p.zeros == nullptr) fill_zeros<C>(place, ring.base);
  wait_for_predecessor();
  let_successor_start();

#pragma unroll 1
  for (int s = 0; s < C::kStages - 1; ++s) {
    ahead.template copy<false, true>(p, place, ring.free_slot);
    ring.free_slot += C::kUnitBytes;
  }

  while (begin < ahead.last) {
    Accumulators<C> acc = {};
    {
      const Piece piece(p, begin, ahead.last);
      const int units = piece.end - begin, before = begin - ahead.first;
      const int unit = team_unit(place.team, C::kTeams, before, units);
      const int team_units = team_unit(place.team + 1, C::kTeams, before, units) - unit;
      const int in_tile = begin - piece.tile_begin + unit;
      if constexpr (C::kWorksAhead) {
        multiply_units_ahead<C>(p, acc.sum, ring, ahead, place, in_tile, team_units);
      } else {
        multiply_units<C>(p, acc, ring, ahead, place, piece.tile, in_tile, team_units);
      }
    }
    const Piece piece(p, opaque(begin), ahead.last);  // anew, so as not to take registers meanwhile
    finish_piece<C>(p, acc.sum, place, piece, team_sums);
    begin = piece.end;
  }
}

// out[m, k] = a[m, perm[k]]. Grid: (m in x, blocks of kGatherThreads columns in y). An index out of range
// gives 0.
__device__ __forceinline__ void gather(const Params& p) {
  const int k = blockIdx.y * kGatherThreads + threadIdx.x;
  wait_for_predecessor();
  let_successor_start();
  if (k >= p.k) return;
  const int64_t m = blockIdx.x;
  const int source = p.perm != nullptr ? p.perm[k] : k;
  static_cast<uint16_t*>(p.out)[m * p.k + k] =
      source >= 0 && source < p.k ? static_cast<const uint16_t*>(p.a)[m * p.a_stride + source] : uint16_t{0};
}

}  // namespace sglk::marlin_gemm

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#include "marlin_gemm_sm90.cuh"
#endif

#define SGLK_MARLIN_ENTRY(dtype, name, threads, body)                                     \
  extern "C" __global__ void __launch_bounds__(threads, 1)                                \
      marlin_gemm_##dtype##_##name(const __grid_constant__ sglk::marlin_gemm::Params p) { \
    body;                                                                                 \
  }

#define SGLK_MARLIN_GEMM(dtype, type, name, weight, is_act_order, tile)                                     \
  SGLK_MARLIN_ENTRY(                                                                                        \
      dtype, name, sglk::marlin_gemm::tile.threads(),                                                       \
      (sglk::marlin_gemm::run<sglk::marlin_gemm::Config<                                                    \
           type, sglk::marlin_gemm::Weight::weight, is_act_order, sglk::marlin_gemm::tile.m,                \
           sglk::marlin_gemm::tile.columns, sglk::marlin_gemm::tile.k_teams, sglk::marlin_gemm::tile.steps, \
           sglk::marlin_gemm::tile.stages, sglk::marlin_gemm::tile.batch, sglk::marlin_gemm::tile.group>>(  \
          p)))

#define SGLK_MARLIN_DTYPE(dtype, type)                                           \
  SGLK_MARLIN_GEMM(dtype, type, u4_m8, kInt4, false, kTile8)                     \
  SGLK_MARLIN_GEMM(dtype, type, u4_m8_deep, kInt4, false, kTile8Deep)            \
  SGLK_MARLIN_GEMM(dtype, type, u4_m8_long, kInt4, false, kTile8Long)            \
  SGLK_MARLIN_GEMM(dtype, type, u4_m16, kInt4, false, kTile16)                   \
  SGLK_MARLIN_GEMM(dtype, type, u4_m16_deep, kInt4, false, kTile16Deep)          \
  SGLK_MARLIN_GEMM(dtype, type, u4_m16_long, kInt4, false, kTile16Long)          \
  SGLK_MARLIN_GEMM(dtype, type, u4_m32, kInt4, false, kTile32)                   \
  SGLK_MARLIN_GEMM(dtype, type, u4_m32_deep, kInt4, false, kTile32Deep)          \
  SGLK_MARLIN_GEMM(dtype, type, u4_m32_group, kInt4, false, kTile32Group)        \
  SGLK_MARLIN_GEMM(dtype, type, u4_m32_long, kInt4, false, kTile32Long)          \
  SGLK_MARLIN_GEMM(dtype, type, u4_m64, kInt4, false, kTile64)                   \
  SGLK_MARLIN_GEMM(dtype, type, u4_m128, kInt4, false, kTile128)                 \
  SGLK_MARLIN_GEMM(dtype, type, u4_m128_long, kInt4, false, kTile128Long)        \
  SGLK_MARLIN_GEMM(dtype, type, u8_m16, kInt8, false, kTile16Byte)               \
  SGLK_MARLIN_GEMM(dtype, type, u8_m64, kInt8, false, kTile64Byte)               \
  SGLK_MARLIN_GEMM(dtype, type, fp8_m16, kFloat8, false, kTile16Byte)            \
  SGLK_MARLIN_GEMM(dtype, type, fp8_m64, kFloat8, false, kTile64Byte)            \
  SGLK_MARLIN_GEMM(dtype, type, u4_act_order_m64, kInt4, true, kTile64Order)     \
  SGLK_MARLIN_GEMM(dtype, type, u8_act_order_m64, kInt8, true, kTile64OrderByte) \
  SGLK_MARLIN_ENTRY(dtype, gather, sglk::marlin_gemm::kGatherThreads, sglk::marlin_gemm::gather(p))

SGLK_MARLIN_DTYPE(bf16, sglk::bf16)
SGLK_MARLIN_DTYPE(f16, sglk::f16)

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SGLK_MARLIN_SM90(dtype, type, name, tile)                                                            \
  extern "C" __global__ void __launch_bounds__(sglk::marlin_gemm::tile.threads(), 1)                         \
      marlin_gemm_sm90_##dtype##_##name(const __grid_constant__ sglk::marlin_gemm::Sm90Params p) {           \
    sglk::marlin_gemm::sm90::run<sglk::marlin_gemm::sm90::Config<                                            \
        type, sglk::marlin_gemm::tile.tokens, sglk::marlin_gemm::tile.stages, sglk::marlin_gemm::tile.teams, \
        sglk::marlin_gemm::tile.group>>(p);                                                                  \
  }

#define SGLK_MARLIN_SM90_DTYPE(dtype, type)                     \
  SGLK_MARLIN_SM90(dtype, type, u4_m16_group, kSm90Tile16Group) \
  SGLK_MARLIN_SM90(dtype, type, u4_m32, kSm90Tile32)            \
  SGLK_MARLIN_SM90(dtype, type, u4_m32_group, kSm90Tile32Group) \
  SGLK_MARLIN_SM90(dtype, type, u4_m64, kSm90Tile64)            \
  SGLK_MARLIN_SM90(dtype, type, u4_m128, kSm90Tile128)

SGLK_MARLIN_SM90_DTYPE(bf16, sglk::bf16)
SGLK_MARLIN_SM90_DTYPE(f16, sglk::f16)
#endif
