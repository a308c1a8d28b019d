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
//   block: a tile of `m` tokens × 256 columns, a piece of its rows      warp: `tokens` × 64 columns
//
//                4 warps of 64 columns
//              ┌─────┬─────┬─────┬─────┐      A lane's 16 (8 bit: 32) bytes of a 16 × 64 tile of weights are
//    team 0    │     │     │     │     │      its A fragments of four m16 tiles; lane group i = lane / 4 owns
//              ├─────┼─────┼─────┼─────┤      the columns i + 8t, whose scales are 16 consecutive bytes and
//    team 1    │     │     │     │     │      whose zero points are one word. It copies these bytes itself
//      ⋮       └─────┴─────┴─────┴─────┘      (cp.async into a ring of its own); only tokens are shared.
//  (pieces of the rows)
//
// Few tokens (kScalesSums): sums of a group are scaled when the group ends. Up to eight bf16 tokens
// (kFoldsZeros), Q enters as 128 + Q, as the bits come, and Σ (128 + Q) a − (128 + Z) Σ a takes the rest
// away: exact in fp32 but for its rounding, far below a bf16 ulp of the terms. Many tokens: weights are
// scaled, and rounded to the type of a.
//
// A block owns a piece of the list of all tiles' units (marlin_gemm.h). What it has of a tile that an earlier
// block began goes to `partial`; that block adds up all parts in the order of k.
#include "marlin_gemm.h"

#include "common/dequantize.cuh"
#include "common/mma.cuh"
#include "common/pdl.cuh"
#include "marlin_gemm_copy.cuh"

namespace sglk::marlin_gemm {

// The scales and zero points of a lane's eight columns, as they lie in memory.
struct RawGroup {
  uint32_t scales[4];  // columns 2j and 2j + 1
  uint32_t zeros;
};

// row: the group's among those of its unit.
template <class C>
__device__ __forceinline__ RawGroup load_group(const Params& p, const Place<C>& place, uint32_t slot,
                                               int row) {
  RawGroup raw;
  const uint32_t scales = slot + place.scales + row * (kTileN * 2);
  if (p.groups > 1) {
    const uint4 v = load_shared(scales);
    raw.scales[0] = v.x, raw.scales[1] = v.y, raw.scales[2] = v.z, raw.scales[3] = v.w;
  } else {  // column i + 8t, permuted per 32: the half i % 2 of word t % 4 of the chunk i / 2
    const int i = place.lane / 4;
    const uint32_t chunk = scales - i * 16 + i / 2 * 16;
    const uint4 v = load_shared(chunk), w = load_shared(chunk + 64);
    const int half = i % 2 ? 0x7632 : 0x5410;
    raw.scales[0] = __byte_perm(v.x, v.y, half), raw.scales[1] = __byte_perm(v.z, v.w, half);
    raw.scales[2] = __byte_perm(w.x, w.y, half), raw.scales[3] = __byte_perm(w.z, w.w, half);
  }
  if constexpr (C::kWeight == Weight::kInt4) {
    raw.zeros = load_shared_word(slot + place.zeros + row * (kTileN / 2));
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

// What weights are scaled by: scale and magic + zero point of a lane's eight columns, each twice in 32 bits.
struct Group {
  uint32_t scale[8];
  uint32_t offset[8];
};

template <class C>
__device__ __forceinline__ void unpack_group(Group& group, const RawGroup& raw) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    group.scale[2 * j] = twice_low(raw.scales[j]);
    group.scale[2 * j + 1] = twice_high(raw.scales[j]);
    if constexpr (C::kWeight == Weight::kInt4) {
      const uint32_t pair = nibbles<typename C::T>(raw.zeros >> (4 * j));
      group.offset[2 * j] = twice_low(pair);
      group.offset[2 * j + 1] = twice_high(pair);
    }
  }
}

// Scale rows of a lane's four k rows in act-order: r, r + 1, r + 8, r + 9 with r = k0 + 2 (lane % 4).
__device__ __forceinline__ void load_row_scales(const Params& p, uint4 (&rows)[4], int k0, int column,
                                                int lane) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int k = k0 + 2 * (lane % 4) + e % 2 + 8 * (e / 2);
    const int g = min(max(p.g_idx[k], 0), p.groups - 1);
    rows[e] = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.scales) + int64_t{g} * p.n +
                                              column + lane / 4 * 8);
  }
}

__device__ __forceinline__ uint32_t word(const uint4& v, int j) {
  return j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w;
}

// Scales of the two rows r, r + 1 (or r + 8, r + 9) in the column i + 8t.
__device__ __forceinline__ uint32_t row_scale(const uint4& first, const uint4& second, int t) {
  return __byte_perm(word(first, t / 2), word(second, t / 2), t % 2 ? 0x7632 : 0x5410);
}

// Part e of the A fragment of the 16 columns from 16u: column 16u + i + 8 (e % 2), rows of k from 8 (e / 2)
// on. Of 4-bit weights the magic number stays.
template <class C>
__device__ __forceinline__ uint32_t raw_part(const uint4 (&packed)[C::kPlanes], int u, int e) {
  using T = typename C::T;
  if constexpr (C::kWeight == Weight::kInt4) {
    return nibbles<T>(word(packed[0], u) >> (e % 2 * 8 + e / 2 * 4));
  } else {
    const uint32_t x = word(packed[u / 2], u % 2 * 2 + e % 2);
    if constexpr (C::kWeight == Weight::kInt8)
      return e < 2 ? centred_bytes<T, true>(x) : centred_bytes<T, false>(x);
    return e < 2 ? float8_bytes<T, true>(x) : float8_bytes<T, false>(x);
  }
}

// The same, less its zero point, and scaled where sums are not.
template <class C>
__device__ __forceinline__ uint32_t weight_part(const uint4 (&packed)[C::kPlanes], const Group& group, int u,
                                                int e) {
  using T = typename C::T;
  const int t = 2 * u + e % 2;
  uint32_t w = raw_part<C>(packed, u, e);
  if constexpr (C::kWeight == Weight::kInt4 && !C::kFoldsZeros) {
    w = subtract<T>(w, C::kIsActOrder ? nibbles<T>(0x00080008) : group.offset[t]);
  }
  if constexpr (!C::kScalesSums && !C::kIsActOrder) w = multiply<T>(w, group.scale[t]);
  return w;
}

// Sums of a warp: [16 columns][8 tokens], C fragments: columns i (0, 1) and i + 8 (2, 3), tokens 2 (lane % 4)
// and the next.
template <class C>
using Sums = float[4][C::kTokenTiles][4];

template <class C>
struct Accumulators {
  Sums<C> sum;
  Sums<C> group;                    // of the group at hand, not scaled
  float tokens[C::kTokenTiles][4];  // Σ a over the group at hand
};

// The operands of a step of k16.
template <class C>
struct Fragments {
  uint4 weights[C::kPlanes];
  uint32_t tokens[C::kTokenTiles][2];
};

template <class C>
__device__ __forceinline__ void load_fragments(Fragments<C>& f, const Place<C>& place, uint32_t slot,
                                               int step) {
#pragma unroll
  for (int i = 0; i < C::kPlanes; ++i) {
    f.weights[i] = load_shared(slot + place.weights + (step * C::kPlanes + i) * 512);
  }
  const uint32_t tokens = slot + (place.tokens ^ step * 32);  // two chunks further
  if constexpr (C::kTokenTiles == 1) {
    load_matrices(f.tokens[0], tokens);
  } else {
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; j += 2) {
      uint32_t r[4];
      load_matrices(r, tokens + j * (8 * C::kSteps * 32));
      f.tokens[j][0] = r[0], f.tokens[j][1] = r[1], f.tokens[j + 1][0] = r[2], f.tokens[j + 1][1] = r[3];
    }
  }
}

// k: the first row, for act-order.
template <class C>
__device__ __forceinline__ void multiply_step(const Params& p, Accumulators<C>& acc, const Group& group,
                                              const Fragments<C>& f, int k, int column) {
  using T = typename C::T;
  uint4 row_scales[4];
  if constexpr (C::kIsActOrder) load_row_scales(p, row_scales, k, column, threadIdx.x % 32);
  if constexpr (C::kFoldsZeros) {
    constexpr uint32_t kOnes[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; ++j) mma<T>(acc.tokens[j], kOnes, f.tokens[j][0], f.tokens[j][1]);
  }
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    uint32_t w[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      w[e] = weight_part<C>(f.weights, group, u, e);
      if constexpr (C::kIsActOrder) {
        w[e] = multiply<T>(w[e], row_scale(row_scales[e / 2 * 2], row_scales[e / 2 * 2 + 1], 2 * u + e % 2));
      }
    }
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; ++j) {
      mma<T>(C::kScalesSums ? acc.group[u][j] : acc.sum[u][j], w, f.tokens[j][0], f.tokens[j][1]);
    }
  }
}

// The same with many tokens, where the tensor cores must not wait: weights are made one fragment ahead,
// between the products. w: the first fragment of this step, then of the next, `after`, whose group
// `open_group` brings.
template <class C, class OpenGroup>
__device__ __forceinline__ void multiply_step_ahead(Accumulators<C>& acc, uint32_t (&w)[4],
                                                    const Group& group, const Fragments<C>& f,
                                                    const Fragments<C>& after, OpenGroup open_group) {
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    uint32_t next[4];
    if (u == 3) open_group();
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; ++j) {
      mma<typename C::T>(acc.sum[u][j], w, f.tokens[j][0], f.tokens[j][1]);
      if (j % 2 == 0) {
        next[j / 2] = weight_part<C>(u == 3 ? after.weights : f.weights, group, (u + 1) % 4, j / 2);
      }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) w[e] = next[e];
  }
}

// Adds the scaled sums of a group that ends to the sums.
template <class C>
__device__ __forceinline__ void close_group(Accumulators<C>& acc, const RawGroup& raw) {
  using T = typename C::T;
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    const float2 scale = to_floats<T>(raw.scales[u]);
    float2 offset = {0.0f, 0.0f};
    if constexpr (C::kFoldsZeros) {
      const float2 zero = to_floats<T>(nibbles<T>(raw.zeros >> (4 * u)));
      offset = {-zero.x * scale.x, -zero.y * scale.y};
    }
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float x = acc.sum[u][j][e] + (e < 2 ? scale.x : scale.y) * acc.group[u][j][e];
        if constexpr (C::kFoldsZeros) x += (e < 2 ? offset.x : offset.y) * acc.tokens[j][e % 2];
        acc.sum[u][j][e] = x;
        acc.group[u][j][e] = 0.0f;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < C::kTokenTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) acc.tokens[j][e] = 0.0f;
  }
}

// The 16 columns u of a warp belong to one team in the end: it adds those of the others, in their order.
template <class C>
__device__ __forceinline__ constexpr int owner(int u) {
  return u * C::kTeams / 4;
}

template <class C>
__device__ __forceinline__ void add_teams(Sums<C>& sum, const Place<C>& place, char* shared) {
  // [place of a team among the others][warp][u in the batch][8 tokens][lane]
  constexpr int kWarpSize = 32 * C::kTokenTiles * C::kBatch, kTeamSize = C::kTile.team_warps() * kWarpSize;
  // Opaque: what is computed of it must not lie in registers during the loop over units.
  const int thread = opaque(place.thread), team = opaque(place.team);
  float4* const sums = reinterpret_cast<float4*>(shared) + thread / 32 * kWarpSize + thread % 32;
#pragma unroll
  for (int first = 0; first < 4; first += C::kBatch) {
    if (first > 0) __syncthreads();
#pragma unroll
    for (int u = first; u < first + C::kBatch; ++u) {
      if (team == owner<C>(u)) continue;
      const int index = team - (team > owner<C>(u));
#pragma unroll
      for (int j = 0; j < C::kTokenTiles; ++j) {
        sums[index * kTeamSize + ((u - first) * C::kTokenTiles + j) * 32] = {sum[u][j][0], sum[u][j][1],
                                                                             sum[u][j][2], sum[u][j][3]};
      }
    }
    __syncthreads();
#pragma unroll
    for (int u = first; u < first + C::kBatch; ++u) {
      if (team != owner<C>(u)) continue;
#pragma unroll
      for (int index = 0; index < C::kTeams - 1; ++index) {
#pragma unroll
        for (int j = 0; j < C::kTokenTiles; ++j) {
          const float4 x = sums[index * kTeamSize + ((u - first) * C::kTokenTiles + j) * 32];
          sum[u][j][0] += x.x, sum[u][j][1] += x.y, sum[u][j][2] += x.z, sum[u][j][3] += x.w;
        }
      }
    }
  }
}

// Where a lane's sums of 16 columns × 8 tokens lie in a part: [warp of a team][u][8 tokens][lane].
template <class C>
__device__ __forceinline__ float4* part_of(const Params& p, const Place<C>& place, int block, int u, int j) {
  constexpr int kTileSize = C::kTile.m * kTileN / 4;
  return reinterpret_cast<float4*>(p.partial) + int64_t{block} * kTileSize +
         ((place.thread / 32 * 4 + u) * C::kTokenTiles + j) * 32 + place.lane;
}

// Writes the part of a tile that an earlier block began. rows: the warp's tokens.
template <class C>
__device__ __forceinline__ void hand_over(const Params& p, const Sums<C>& sum, const Place<C>& place,
                                          int block, int rows) {
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    if (place.team != owner<C>(u)) continue;
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; ++j) {
      if (j * 8 >= rows) continue;
      __stcg(part_of(p, place, block, u, j), float4{sum[u][j][0], sum[u][j][1], sum[u][j][2], sum[u][j][3]});
    }
  }
}

// Adds the parts of the blocks after this one, up to `last`. They were placed earlier, see `run`.
template <class C>
__device__ __forceinline__ void collect(const Params& p, Sums<C>& sum, const Place<C>& place, int block,
                                        int last, int rows) {
  if (threadIdx.x == 0) {
    while (load_acquire(p.arrivals + block) < last - block) {
    }
    p.arrivals[block] = 0;
  }
  __syncthreads();
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    if (place.team != owner<C>(u)) continue;
#pragma unroll
    for (int j = 0; j < C::kTokenTiles; ++j) {
      if (j * 8 >= rows) continue;
#pragma unroll 4
      for (int other = block + 1; other <= last; ++other) {
        const float4 x = __ldcg(part_of(p, place, other, u, j));
        sum[u][j][0] += x.x, sum[u][j][1] += x.y, sum[u][j][2] += x.z, sum[u][j][3] += x.w;
      }
    }
  }
}

template <class T>
__device__ __forceinline__ float bias_at(const Params& p, int n) {
  if (p.bias == nullptr) return 0.0f;
  return to_float(static_cast<const T*>(p.bias)[n / 32 * 32 + n % 8 / 2 * 8 + n % 32 / 8 * 2 + n % 2]);
}

// m0, n0: of the warp.
template <class C>
__device__ __forceinline__ void store_tile(const Params& p, const Sums<C>& sum, const Place<C>& place, int m0,
                                           int n0) {
  using T = typename C::T;
  const int lane = place.lane;
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    if (place.team != owner<C>(u)) continue;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int n = n0 + u * 16 + h * 8;
      const float bias = bias_at<T>(p, n + lane / 4);
#pragma unroll
      for (int j = 0; j < C::kTokenTiles; ++j) {
        // Transposed, lane / 4 is the token, and the lane has two neighbouring columns of it.
        const uint32_t pair = transpose(from_floats<T>(sum[u][j][2 * h] + bias, sum[u][j][2 * h + 1] + bias));
        const int m = m0 + j * 8 + lane / 4;
        if (m < p.m) {
          T* const out = static_cast<T*>(p.out) + m * p.out_stride + n + lane % 4 * 2;
          *reinterpret_cast<uint32_t*>(out) = pair;
        }
      }
    }
  }
}

// The products of a team's `units` units from `unit` on, which lie in the ring from `slot` on; copies as many
// that come later.
template <class C>
__device__ __forceinline__ void multiply_units(const Params& p, Accumulators<C>& acc, Walk<C>& ahead,
                                               const Place<C>& place, uint32_t ring, uint32_t& slot,
                                               uint32_t& free_slot, int tile, int unit, int units) {
  if (units == 0) return;
  int column = 0;  // of the warp, for act-order
  if (C::kIsActOrder) {
    column = min(tile_at(tile, p.m_tiles, p.n_tiles).n * kTileN + place.warp_n * 64, p.n - 64);
  }
  Group group = {};
  Fragments<C> f[2];
  int pairs = unit * C::kTile.groups();
  const int group_mask = (1 << p.group_shift) - 1;
  bool opens = true;  // a group
  const auto open_unit = [&] {
    wait_copies<C::kStages - 2>();
    team_barrier<C>(place.team);
    load_fragments<C>(f[0], place, slot, 0);
  };
  open_unit();
  uint32_t w[4];
  if constexpr (C::kWorksAhead) {
    unpack_group<C>(group, load_group<C>(p, place, slot, 0));
#pragma unroll
    for (int e = 0; e < 4; ++e) w[e] = weight_part<C>(f[0].weights, group, 0, e);
  }
  for (; units > 0; --units) {
    const uint32_t group_slot = slot;
    copy_unit<C>(p, ahead, place, free_slot);
    commit_copies();
    free_slot = slot;
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
      const int row = p.group_shift == 0 ? step / 2 : 0;  // of the group in the unit
      const bool is_last_step = step + 1 == C::kSteps;
      bool closes = false;
      if (step % 2 == 1) {
        ++pairs;
        closes = (pairs & group_mask) == 0 || (C::kScalesSums && is_last_step && units == 1);
      }
      if constexpr (!C::kIsActOrder && !C::kFoldsZeros && !C::kWorksAhead) {
        if (step % 2 == 0 && opens) unpack_group<C>(group, load_group<C>(p, place, group_slot, row));
      }
      RawGroup raw;
      if (C::kScalesSums && closes) raw = load_group<C>(p, place, group_slot, row);
      if (!is_last_step) {
        load_fragments<C>(f[(step + 1) % 2], place, slot, step + 1);
      } else {
        slot = slot + C::kUnitBytes == ring + C::kStages * C::kUnitBytes ? ring : slot + C::kUnitBytes;
        if (units > 1) open_unit();
      }
      if constexpr (C::kWorksAhead) {
        multiply_step_ahead<C>(acc, w, group, f[step % 2], f[(step + 1) % 2], [&] {
          if (closes && (!is_last_step || units > 1)) {
            unpack_group<C>(
                group, load_group<C>(p, place, slot, is_last_step || p.group_shift > 0 ? 0 : (step + 1) / 2));
          }
        });
      } else {
        multiply_step<C>(p, acc, group, f[step % 2], (pairs - step % 2) * 32 + step % 2 * 16, column);
      }
      if (C::kScalesSums && closes) close_group<C>(acc, raw);
      if (step % 2 == 1) opens = closes;
    }
  }
}

template <class C>
__device__ __forceinline__ void run(const Params& p) {
  extern __shared__ __align__(128) char shared[];
  const Place<C> place(p);
  const uint32_t ring = opaque(shared_address(shared) + place.team * (C::kStages * C::kUnitBytes));
  char* const team_sums = shared + C::kTeams * C::kStages * C::kUnitBytes;

  // A block waits for those after it in the list, which therefore come first in the grid.
  const int block = gridDim.x - 1 - blockIdx.x;
  const int last = p.partition.first(block + 1, gridDim.x);
  int begin = p.partition.first(block, gridDim.x);

  Walk<C> ahead;
  ahead.next = ahead.first = begin, ahead.last = last;
  ahead.left = 0;
  if (begin < last) ahead.open_next(p, place);
  // The first weights come into the L2 while the predecessor drains. It may be what wrote them: a prefetch
  // reads nothing.
#pragma unroll
  for (int s = 0; s < C::kSteps * (C::kStages - 1); ++s) {
    if (s / C::kSteps < ahead.left) prefetch_l2(ahead.weight + s * int64_t{p.n} * (C::kBits * 2));
  }
  if (place.copies_group && ahead.left > 0) prefetch_l2(ahead.group_at(p));
  if (C::kWeight == Weight::kInt4 && p.zeros == nullptr) fill_zeros<C>(place, ring);
  wait_for_predecessor();
  let_successor_start();

  uint32_t slot = ring, free_slot = ring;
#pragma unroll 1
  for (int s = 0; s < C::kStages - 1; ++s) {
    copy_unit<C>(p, ahead, place, free_slot);
    commit_copies();
    free_slot += C::kUnitBytes;
  }

  int owed = -1;  // the block that waits for this one's part of its tile
  while (begin < last) {
    const int tile = begin / p.partition.tile_units;
    const int tile_begin = tile * p.partition.tile_units, tile_end = tile_begin + p.partition.tile_units;
    const int end = min(last, tile_end), units = end - begin, before = begin - ahead.first;
    const int team_begin = team_unit(place.team, C::kTeams, before, units);
    const int team_units = team_unit(place.team + 1, C::kTeams, before, units) - team_begin;

    Accumulators<C> acc = {};
    multiply_units<C>(p, acc, ahead, place, ring, slot, free_slot, tile, begin - tile_begin + team_begin,
                      team_units);

    const TileIndex index = tile_at(tile, p.m_tiles, p.n_tiles);
    const int m0 = index.m * C::kTile.m + place.warp_m * C::kTokens,
              n0 = index.n * kTileN + place.warp_n * 64;
    if (begin > ahead.first) {
      __syncthreads();  // the sums that teams handed each other are read, and the part is written
      if (end == last && owed >= 0) {
        if (threadIdx.x == 0) add_release(p.arrivals + owed, 1);
        owed = -1;
      }
    }
    add_teams<C>(acc.sum, place, team_sums);
    if (begin == tile_begin) {
      if (end < tile_end) {
        collect<C>(p, acc.sum, place, block, p.partition.block_of(tile_end - 1, gridDim.x), p.m - m0);
      }
      if (n0 < p.n) store_tile<C>(p, acc.sum, place, m0, n0);
    } else {
      hand_over<C>(p, acc.sum, place, block, p.m - m0);
      owed = p.partition.block_of(tile_begin, gridDim.x);
    }
    begin = end;
  }
  if (owed >= 0) {
    __syncthreads();
    if (threadIdx.x == 0) add_release(p.arrivals + owed, 1);
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

#define SGLK_MARLIN_GEMM(dtype, type, name, weight, is_act_order, tile)                                    \
  SGLK_MARLIN_ENTRY(                                                                                       \
      dtype, name, sglk::marlin_gemm::tile.threads(),                                                      \
      (sglk::marlin_gemm::run<sglk::marlin_gemm::Config<                                                   \
           type, sglk::marlin_gemm::Weight::weight, is_act_order, sglk::marlin_gemm::tile.m,               \
           sglk::marlin_gemm::tile.tokens, sglk::marlin_gemm::tile.k_teams, sglk::marlin_gemm::tile.steps, \
           sglk::marlin_gemm::tile.stages, sglk::marlin_gemm::tile.batch>>(p)))

#define SGLK_MARLIN_DTYPE(dtype, type)                                      \
  SGLK_MARLIN_GEMM(dtype, type, u4_m8, kInt4, false, kTile8)                \
  SGLK_MARLIN_GEMM(dtype, type, u4_m8_deep, kInt4, false, kTile8Deep)       \
  SGLK_MARLIN_GEMM(dtype, type, u4_m16, kInt4, false, kTile16)              \
  SGLK_MARLIN_GEMM(dtype, type, u4_m16_deep, kInt4, false, kTile16Deep)     \
  SGLK_MARLIN_GEMM(dtype, type, u4_m32, kInt4, false, kTile32)              \
  SGLK_MARLIN_GEMM(dtype, type, u4_m64, kInt4, false, kTile64)              \
  SGLK_MARLIN_GEMM(dtype, type, u8_m16, kInt8, false, kTile16Byte)          \
  SGLK_MARLIN_GEMM(dtype, type, u8_m64, kInt8, false, kTile64Byte)          \
  SGLK_MARLIN_GEMM(dtype, type, fp8_m16, kFloat8, false, kTile16Byte)       \
  SGLK_MARLIN_GEMM(dtype, type, fp8_m64, kFloat8, false, kTile64Byte)       \
  SGLK_MARLIN_GEMM(dtype, type, u4_act_order_m64, kInt4, true, kTile64)     \
  SGLK_MARLIN_GEMM(dtype, type, u8_act_order_m64, kInt8, true, kTile64Byte) \
  SGLK_MARLIN_ENTRY(dtype, gather, sglk::marlin_gemm::kGatherThreads, sglk::marlin_gemm::gather(p))

SGLK_MARLIN_DTYPE(bf16, sglk::bf16)
SGLK_MARLIN_DTYPE(f16, sglk::f16)

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SGLK_MARLIN_SM90(dtype, type, name, tile)                                                      \
  extern "C" __global__ void __launch_bounds__(sglk::marlin_gemm::kSm90Threads, 1)                     \
      marlin_gemm_sm90_##dtype##_##name(const __grid_constant__ sglk::marlin_gemm::Sm90Params p) {     \
    sglk::marlin_gemm::sm90::run<sglk::marlin_gemm::sm90::Config<type, sglk::marlin_gemm::tile.tokens, \
                                                                 sglk::marlin_gemm::tile.stages>>(p);  \
  }

#define SGLK_MARLIN_SM90_DTYPE(dtype, type)          \
  SGLK_MARLIN_SM90(dtype, type, u4_m32, kSm90Tile32) \
  SGLK_MARLIN_SM90(dtype, type, u4_m64, kSm90Tile64) \
  SGLK_MARLIN_SM90(dtype, type, u4_m128, kSm90Tile128)

SGLK_MARLIN_SM90_DTYPE(bf16, sglk::bf16)
SGLK_MARLIN_SM90_DTYPE(f16, sglk::f16)
#endif
