// What a warp of marlin_gemm.cu makes of a step of 16 rows: the operands from shared memory, the products,
// and what the end of a group adds to the sums.
#pragma once

#include "common/dequantize.cuh"
#include "common/mma.cuh"
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
  const uint32_t scales = slot + place.scales + row * (C::kWidth * 2);
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
    raw.zeros =
        load_shared_word(slot + place.zeros + row * (C::kWidth / 2)) >> (place.warp % C::kSharers * 8);
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

// The tokens that are loaded at once, B fragments: of a step of k16, or kLoadsPairs, of two.
template <class C>
using Tokens = uint32_t[C::kLoadedTiles][2];

template <class C>
__device__ __forceinline__ void load_words(Words<C>& words, const Place<C>& place, uint32_t slot, int step) {
#pragma unroll
  for (int i = 0; i < C::kWords; i += 4) {
    constexpr int kChunk = C::kWords < 4 ? C::kWords : 4;
    load_shared<kChunk>(words + i, slot + place.weights + step * C::kStepBytes + i / 4 * 512);
  }
}

// Those from 8j on, 16; kLoadsPairs: all.
template <class C>
__device__ __forceinline__ void load_tokens(Tokens<C>& tokens, const Place<C>& place, uint32_t slot, int step,
                                            int j) {
  // A step is two chunks further. Slots are multiples of 256, so that the sum may come first, one for all
  // steps.
  const uint32_t first =
      C::kHasRegisters ? (slot + place.tokens) ^ step * 32 : slot + (place.tokens ^ step * 32);
  uint32_t r[4];
  load_matrices(r, first + j * (8 * C::kSteps * 32));
  tokens[j][0] = r[0], tokens[j][1] = r[1], tokens[j + 1][0] = r[2], tokens[j + 1][1] = r[3];
}

// Whether a step has tokens loaded; otherwise the one before it had.
template <class C>
__device__ __forceinline__ bool loads_tokens(int step) {
  return !C::kLoadsPairs || step % 2 == 0;
}

// The operands of a step.
template <class C>
struct Operands {
  Words<C> words;
  Tokens<C> tokens;

  __device__ __forceinline__ void load(const Place<C>& place, uint32_t slot, int step) {
    load_words<C>(words, place, slot, step);
    if (!loads_tokens<C>(step)) return;
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; j += 2) load_tokens<C>(tokens, place, slot, step, j);
  }
};

// Leaves in the slot the sums of its tokens over the warp's share of the steps. The B fragment of 16 tokens
// is an A fragment: of a product with ones, each column is the sums.
template <class C>
__device__ __forceinline__ void share_token_sums(const Place<C>& place, uint32_t slot) {
  static_assert(C::kTile.team_warps() == 4);  // whose sums take_token_sums loads at once
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < C::kOwnSteps; ++i) {
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

// By what weights are multiplied: tokens, or kIsRaw, what makes up for the place of nibbles. Adds up those of
// two steps.
template <class C>
__device__ __forceinline__ void scale_tokens(Tokens<C>& scaled, Accumulators<C>& acc,
                                             const Tokens<C>& tokens) {
  using T = typename C::T;
#pragma unroll
  for (int j = 0; j < C::kLoadedTiles; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
      scaled[j][h] = C::kIsRaw ? multiply<T>(tokens[j][h], kRawScale[h]) : tokens[j][h];
  }
  if constexpr (C::kIsRaw && C::kLoadsPairs) {
    // Two B fragments are an A fragment: its rows are the first eight k of both, and then the others.
    const uint32_t all[4] = {tokens[0][0], tokens[0][1], tokens[1][0], tokens[1][1]};
    mma<T>(acc.tokens, all, kOnes, kOnes);
  }
}

// tokens: of the step. k, scales: the first row, and the scales of the lane's columns, for act-order.
template <class C>
__device__ __forceinline__ void multiply_step(const Params& p, Accumulators<C>& acc, const Group<C>& group,
                                              const Words<C>& words, const uint32_t (*tokens)[2], int k,
                                              const uint16_t* scales) {
  using T = typename C::T;
  RowScales row_scales;
  if constexpr (C::kIsActOrder) load_row_scales(p, row_scales, k, scales, threadIdx.x % 32);
#pragma unroll
  for (int u = 0; u < C::kColumnTiles; ++u) {
    uint32_t w[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      w[e] = weight_part<C>(words, group, u, e);
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

}  // namespace sglk::marlin_gemm
