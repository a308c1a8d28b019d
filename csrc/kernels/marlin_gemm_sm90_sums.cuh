// What becomes of the sums of marlin_gemm_sm90.cuh: added over the teams of a block and the blocks of a tile,
// stored.
#pragma once

#include "common/dequantize.cuh"
#include "common/mma.cuh"
#include "marlin_gemm_sm90_copy.cuh"
#include "marlin_gemm_sums.cuh"

namespace sglk::marlin_gemm::sm90 {

// Of the warp's two times 16 columns, as [8 tokens][4], C fragments.
template <class C>
using Sums = float[2][C::kTokens / 2];

// Those that a team gets: all, or those of 16 columns, of all tokens or of some.
template <class C>
using OwnSums = float[C::kOwn][C::kOwnTokens * 4];

// Where they begin.
template <class C>
__device__ __forceinline__ int own_columns(unsigned team) {
  return team * C::kOwnTokens / (C::kTokens / 8) * 16;
}
template <class C>
__device__ __forceinline__ int own_tokens(unsigned team) {
  return team * C::kOwnTokens % (C::kTokens / 8) * 8;
}

template <class C>
__device__ __forceinline__ void add_teams(OwnSums<C>& own, const Sums<C>& sum, const Ring& ring, int team) {
  if constexpr (C::kTeams == 1) {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
#pragma unroll
      for (int i = 0; i < C::kTokens / 2; ++i) own[b][i] = sum[b][i];
    }
  } else {
    constexpr int kOwn = C::kOwnTokens, kOthers = C::kTeams - 1;
    // [team that gets them][other team, whose they are][sum][thread of a team], after the barriers of the
    // ring
    const uint32_t offset = ring.parts + 16 - shared_address(dynamic_shared());
    float4* const shared =
        reinterpret_cast<float4*>(dynamic_shared() + offset) + (opaque(threadIdx.x) - 128) % C::kWidth;
    // The i-th of those that a team gets.
    const auto sum_of = [&](int to, int i) {
      float x[4];
#pragma unroll
      for (int t = 0; t < C::kTeams; ++t) {
        const int at = t * kOwn + i;
        const float* const of = sum[at / (C::kTokens / 8)] + at % (C::kTokens / 8) * 4;
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] = t == 0 || to == t ? of[e] : x[e];
      }
      return float4{x[0], x[1], x[2], x[3]};
    };
    consumer_barrier<C>();  // what was there has been read
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float4 x = sum_of(team, i);
      own[0][i * 4] = x.x, own[0][i * 4 + 1] = x.y, own[0][i * 4 + 2] = x.z, own[0][i * 4 + 3] = x.w;
#pragma unroll
      for (int other = 0; other < kOthers; ++other) {
        const int to = team ^ (other + 1);
        shared[((to * kOthers + other) * kOwn + i) * C::kWidth] = sum_of(to, i);
      }
    }
    consumer_barrier<C>();
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int other = 0; other < kOthers; ++other) {
        const float4 x = shared[((team * kOthers + other) * kOwn + i) * C::kWidth];
        float* const to = own[0] + i * 4;
        to[0] += x.x, to[1] += x.y, to[2] += x.z, to[3] += x.w;
      }
    }
  }
}

// Where a thread's own sums lie in a part: [128 columns][16 columns of each warp][8 tokens][thread of a
// warpgroup].
template <class C>
__device__ __forceinline__ float4* part_of(const Params& p, int block, int columns, int team) {
  return reinterpret_cast<float4*>(p.partial) + int64_t{block} * kPartSize<C> +
         columns * (C::kTokens / 4 * 128) + team * C::kOwn * (C::kOwnTokens * 128) +
         opaque(threadIdx.x) % 128;
}

// rows: the tokens from the first of the team's on.
template <class C>
__device__ __forceinline__ void hand_over(const Params& p, const OwnSums<C>& sum, int block, int columns,
                                          int team, int rows) {
  float4* const part = part_of<C>(p, block, columns, team);
#pragma unroll
  for (int j = 0; j < C::kOwnTokens; ++j) {
    if (j * 8 >= rows) break;
#pragma unroll
    for (int b = 0; b < C::kOwn; ++b) {
      const float* const x = sum[b] + j * 4;
      __stcg(part + (b * C::kOwnTokens + j) * 128, float4{x[0], x[1], x[2], x[3]});
    }
  }
}

// A thread has 16 loads of parts on their way at once: of 64 tokens at most, and of so many parts.
template <class C>
constexpr int kLoadedTiles = C::kOwnTokens < 8 ? C::kOwnTokens : 8;
template <class C>
constexpr int kLoadedParts = 16 / (kLoadedTiles<C> * C::kOwn);

// Adds up to kParts parts that lie one after the other, of which there are `count`.
template <class C, int kParts>
__device__ __forceinline__ void add_parts(OwnSums<C>& sum, const float4* part, int count, int rows) {
  constexpr int kTokenTiles = kLoadedTiles<C>;
#pragma unroll
  for (int j = 0; j < C::kOwnTokens; j += kTokenTiles) {
    float4 x[kParts][kTokenTiles][C::kOwn] = {};
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
        if (i >= count || (j + tile) * 8 >= rows) continue;
#pragma unroll
        for (int b = 0; b < C::kOwn; ++b) {
          x[i][tile][b] = __ldcg(part + i * kPartSize<C> + (j + tile + b * C::kOwnTokens) * 128);
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

// Adds the parts of a block's children, of the `blocks` from `first` on that share a tile.
template <class C>
__device__ __forceinline__ void collect(const Params& p, const Ring& ring, OwnSums<C>& sum, int block,
                                        int first, int blocks, int columns, int team, int rows) {
  constexpr int kFlat = max_flat(C::kTokens);
  // Without children here it may have some in its next tile, whose flags may be up already.
  if (child_of(block - first, 0, blocks, kFlat) == 0) return;
  const float4* part = opaque(part_of<C>(p, block + 1, columns, team));  // of the first child
  if (has_all_parts<C>(block - first, blocks)) {
    wait_barrier(ring.parts, 0);
#pragma unroll 1
    for (int left = blocks - 1; left > 0; left -= kLoadedParts<C>) {
      add_parts<C, kLoadedParts<C>>(sum, part, left, rows);
      part += kLoadedParts<C> * kPartSize<C>;
    }
  } else {
#pragma unroll 1
    for (int child = 0; child_of(block - first, child, blocks, kFlat) > 0; ++child) {
      if (threadIdx.x == 128) {
        while ((load_acquire(p.arrivals + block) >> child & 1) == 0) {
        }
      }
      consumer_barrier<C>();
      add_parts<C, 1>(sum, part, 1, rows);
      part += kPartSize<C> << child;
    }
    if (threadIdx.x == 128) p.arrivals[block] = 0;
  }
}

// m0, n0: of the team's sums.
template <class C>
__device__ __forceinline__ void store_tile(const Params& p, const OwnSums<C>& sum, int m0, int n0, int warp,
                                           int lane) {
  using T = typename C::T;
  const auto column = [&](int i) { return n0 + warp / 2 * 64 + odd_half<C>(warp, i) * 32 + i; };
  if (column(0) >= p.n) return;
#pragma unroll
  for (int b = 0; b < C::kOwn; ++b) {
    const int row = column(lane / 4) + b * 16, n = column(lane % 4 * 2) + b * 16;
    const float bias[2] = {bias_at<T>(p, row), bias_at<T>(p, row + 8)};
#pragma unroll
    for (int j = 0; j < C::kOwnTokens; ++j) {
      const float* const x = sum[b] + j * 4;
      // Transposed, lane / 4 is the token; the lane has two neighbouring columns of the first eight, and two
      // of the last. Where its neighbour has the next two, they swap so that each stores eight bytes.
      constexpr float kScale = 1 / kIntegerUnit<T>;
      const uint32_t low = transpose(from_floats<T>(x[0] * kScale + bias[0], x[1] * kScale + bias[0]));
      const uint32_t high = transpose(from_floats<T>(x[2] * kScale + bias[1], x[3] * kScale + bias[1]));
      const int m = m0 + j * 8 + lane / 4;
      T* const out = static_cast<T*>(p.out) + m * p.out_stride + n;
      if constexpr (C::kIsSmall) {
        if (m < p.m) {
          reinterpret_cast<uint32_t*>(out)[0] = low;
          reinterpret_cast<uint32_t*>(out)[4] = high;
        }
      } else {
        const bool is_odd = lane % 2;
        const uint32_t other = __shfl_xor_sync(0xffffffffu, is_odd ? low : high, 1);
        const uint2 four = is_odd ? uint2{other, high} : uint2{low, other};
        if (m < p.m) {
          T* const to = out + (is_odd ? 6 : 0);  // of the last eight, two columns before
          if (p.out_stride % 4 == 0) {
            *reinterpret_cast<uint2*>(to) = four;
          } else {
            reinterpret_cast<uint32_t*>(to)[0] = four.x;
            reinterpret_cast<uint32_t*>(to)[1] = four.y;
          }
        }
      }
    }
  }
}

}  // namespace sglk::marlin_gemm::sm90
