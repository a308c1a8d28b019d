// What becomes of the sums of marlin_gemm.cu: added over the teams of a block and the blocks of a tile,
// stored.
#pragma once

#include "common/mma.cuh"
#include "marlin_gemm_copy.cuh"

namespace sglk::marlin_gemm {

// Sums of a warp: [16 columns][8 tokens], C fragments: columns i (0, 1) and i + 8 (2, 3), tokens 2 (lane % 4)
// and the next.
template <class C>
using Sums = float[C::kColumnTiles][C::kTokenTiles][4];

// In the end a team (C::kOwners) has kOwn of a warp's 16 columns, of which it adds up the sums of all teams,
// in their order: from own_columns on.
template <class C>
using OwnSums = float[C::kOwn][C::kTokenTiles][4];

template <class C>
__device__ __forceinline__ int own_columns(const Place<C>& place) {
  return place.team * C::kOwn;
}
template <class C>
__device__ __forceinline__ bool owns_sums(const Place<C>& place) {
  return C::kOwners == C::kTeams || place.team < C::kOwners;
}

template <class C>
__device__ __forceinline__ void block_barrier() {
  named_barrier<C::kTile.threads()>(1 + C::kTeams);
}

template <class C>
__device__ __forceinline__ void add_teams(OwnSums<C>& own, const Sums<C>& sum, const Place<C>& place,
                                          char* shared) {
  static_assert(C::kColumnTiles % C::kOwners == 0);
  constexpr bool kIsAlone = C::kTeams == 1;
  // [place of a team among the others][warp][sums of 16 columns × 8 tokens in the batch][lane]
  constexpr int kWarpSize = 32 * C::kBatch, kTeamSize = C::kTile.team_warps() * kWarpSize;
  // Opaque: what is computed of it must not lie in registers during the loop over units.
  const unsigned thread = opaque(place.thread);
  const int team = opaque(place.team);
  float4* const sums = reinterpret_cast<float4*>(shared) + thread / 32 * kWarpSize + thread % 32;
#pragma unroll
  for (int first = 0; first < C::kColumnTiles * C::kTokenTiles; first += C::kBatch) {
    if (!kIsAlone && first > 0) block_barrier<C>();
#pragma unroll
    for (int i = 0; i < C::kBatch; ++i) {
      const int u = (first + i) / C::kTokenTiles, j = (first + i) % C::kTokenTiles, owner = u / C::kOwn;
      const float (&x)[4] = sum[u][j];
      if (kIsAlone || team == owner) {
#pragma unroll
        for (int e = 0; e < 4; ++e) own[u % C::kOwn][j][e] = x[e];
      } else {
        const int index = team - (team > owner);
        sums[index * kTeamSize + i * 32] = {x[0], x[1], x[2], x[3]};
      }
    }
    if (kIsAlone) continue;
    block_barrier<C>();
#pragma unroll
    for (int i = 0; i < C::kBatch; ++i) {
      const int u = (first + i) / C::kTokenTiles, j = (first + i) % C::kTokenTiles;
      if (team != u / C::kOwn) continue;
      float (&to)[4] = own[u % C::kOwn][j];
#pragma unroll
      for (int index = 0; index < C::kTeams - 1; ++index) {
        const float4 x = sums[index * kTeamSize + i * 32];
        to[0] += x.x, to[1] += x.y, to[2] += x.z, to[3] += x.w;
      }
    }
  }
}

// Where the sums of a tile go, and who has a part of them.
struct Target {
  TileIndex index;
  int first, last;  // blocks

  __device__ __forceinline__ static Target of(const Params& p, int tile) {
    const int begin = tile * p.partition.tile.value;
    const TileIndex index = p.tiles.at(tile);
    return {{uniform(index.m), uniform(index.n)},
            uniform(p.partition.block_of(begin)),
            uniform(p.partition.block_of(begin + p.partition.tile.value - 1))};
  }
};

// A part, in float4: [warp of a team][16 columns][8 tokens][lane].
template <class C>
constexpr int kPartSize = C::kTokens * C::kWidth / 4;
template <class C>
__device__ __forceinline__ int in_part(int columns, int tokens) {
  return (columns * C::kTokenTiles + tokens) * 32;
}
// Where a lane's own sums begin in that of a block.
template <class C>
__device__ __forceinline__ float4* part_of(const Params& p, const Place<C>& place, int block) {
  const int columns = place.warp * C::kColumnTiles + own_columns(place);
  return opaque(reinterpret_cast<float4*>(p.partial) + int64_t{block} * kPartSize<C> +
                in_part<C>(columns, 0) + place.lane);
}

// Writes the part of a tile that an earlier block began. rows: the warp's tokens.
template <class C>
__device__ __forceinline__ void hand_over(const Params& p, const OwnSums<C>& sum, const Place<C>& place,
                                          int block, int rows) {
  float4* const part = part_of<C>(p, place, block);
#pragma unroll
  for (int u = 0; u < C::kOwn; ++u) {
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; ++j) {
      if (j * 8 >= rows) continue;
      __stcg(part + in_part<C>(u, j), float4{sum[u][j][0], sum[u][j][1], sum[u][j][2], sum[u][j][3]});
    }
  }
}

// Adds the parts of the blocks after this one, up to `last`. They were placed earlier, see `run`. Up to
// eight loads are on their way at once, 16 of at most 16 tokens: one by one they took most of the time.
template <class C>
__device__ __forceinline__ void collect(const Params& p, OwnSums<C>& sum, const Place<C>& place, int block,
                                        int last, int rows) {
  constexpr int kMost =
      C::kTile.threads() == 512 ? 4 : 8;  // of one block: 512 threads have 128 registers each
  constexpr int kTokenTiles = C::kTokenTiles < kMost ? C::kTokenTiles : kMost;
  constexpr int kBlocks = C::kTokens <= 16 ? 16 / kTokenTiles : C::kTokens == 32 ? 2 : 1;
  const float4* const parts = part_of<C>(p, place, block + 1);
  const int count = last - block;
  if (threadIdx.x == 0) {
    while (load_acquire(p.arrivals + block) < count) {
    }
    p.arrivals[block] = 0;
  }
  block_barrier<C>();
  if (!owns_sums<C>(place)) return;
#pragma unroll
  for (int u = 0; u < C::kOwn; ++u) {
    const float4* part = parts;
#pragma unroll 1
    for (int left = count; left > 0; left -= kBlocks) {
#pragma unroll
      for (int first = 0; first < C::kTokenTiles; first += kTokenTiles) {
        float4 x[kBlocks][kTokenTiles] = {};
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
          for (int j = 0; j < kTokenTiles; ++j) {
            if (i < left && (first + j) * 8 < rows) {
              x[i][j] = __ldcg(part + i * kPartSize<C> + in_part<C>(u, first + j));
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
          for (int j = 0; j < kTokenTiles; ++j) {
            float (&to)[4] = sum[u][first + j];
            to[0] += x[i][j].x, to[1] += x[i][j].y, to[2] += x[i][j].z, to[3] += x[i][j].w;
          }
        }
      }
      part += kBlocks * kPartSize<C>;
    }
  }
}

template <class T>
__device__ __forceinline__ float bias_at(const Params& p, int n) {
  if (p.bias == nullptr) return 0.0f;
  return to_float(static_cast<const T*>(p.bias)[n / 32 * 32 + n % 8 / 2 * 8 + n % 32 / 8 * 2 + n % 2]);
}

// n0: of the warp.
template <class C>
__device__ __forceinline__ void store_tile(const Params& p, const OwnSums<C>& sum, const Place<C>& place,
                                           int m0, int n0) {
  using T = typename C::T;
  const int lane = place.lane;
#pragma unroll
  for (int u = 0; u < C::kOwn; ++u) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int n = n0 + (own_columns(place) + u) * 16 + h * 8;
      const float bias = bias_at<T>(p, n + lane / 4);
#pragma unroll
      for (int j = 0; j < C::kTokenTiles; ++j) {
        // Transposed, lane / 4 is the token, and the lane has two neighbouring columns of it.
        const float* const x = sum[u][j] + 2 * h;
        const uint32_t pair =
            transpose(from_floats<T>(x[0] * (1 / C::kSumUnit) + bias, x[1] * (1 / C::kSumUnit) + bias));
        const int m = m0 + j * 8 + lane / 4;
        if (m < p.m) {
          T* const out = static_cast<T*>(p.out) + m * p.out_stride + n + lane % 4 * 2;
          *reinterpret_cast<uint32_t*>(out) = pair;
        }
      }
    }
  }
}

}  // namespace sglk::marlin_gemm
