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
    const uint32_t offset = ring.parts + 16 - shared_address(dynamic_shared());
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

// Adds the parts of a block's children, of the `blocks` from `first` on that share a tile.
template <class C>
__device__ __forceinline__ void collect(const Params& p, const Ring& ring, OwnSums<C>& sum, int block,
                                        int first, int blocks, int half, int team, int rows) {
  constexpr int kFlat = max_flat(C::kTokens);
  // Without children here it may have some in its next tile, whose flags may be up already.
  if (child_of(block - first, 0, blocks, kFlat) == 0) return;
  const float4* part = opaque(part_of<C>(p, block + 1, half, team));  // of the first child
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

// n0: of the half of the block's columns, and the 16 of each 32 that the first own sums are of.
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
    for (int j = 0; j < C::kTokens / 8; ++j) {
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
