// The Marlin GEMM for many tokens with what sm_90a has: see marlin_gemm.cu for the formula and the layouts.
//
// outᵀ = Wᵀ · aᵀ again: the weights are the register operand of wgmma, made by the warp that multiplies with
// them, the tokens its operand in shared memory. Of 64 columns, warp w of a warpgroup takes the 16 from 16w:
// word w of each lane's four, so that no weight is made twice.
//
//   block: `tokens` × 128 · blocks columns        warpgroup 0: one thread copies, by the copy engine
//                                                 warpgroups 1, 2: 64 · blocks columns each
//   stage: 64 rows                                 [tokens, 64] swizzled · weights · scales · zero points
//
// While the products of one stage run, the weights of the next are made, into registers of their own.
// The work is shared as in marlin_gemm.cu, in units of two stages.
#pragma once

#include "common/dequantize.cuh"
#include "common/mma.cuh"
#include "common/pdl.cuh"
#include "common/wgmma.cuh"
#include "marlin_gemm.h"

namespace sglk::marlin_gemm::sm90 {

constexpr int kConsumers = 256;  // threads that multiply
constexpr int kSteps = 4;        // of k16 in a stage

template <class T_, int kTokens_, int kBlocks_, int kStages_>
struct Config {
  using T = T_;
  static constexpr int kTokens = kTokens_, kBlocks = kBlocks_, kStages = kStages_;
  static constexpr Sm90Tile kTile{kTokens, kBlocks, kStages};
  static constexpr int kColumns = kTile.columns();
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

__device__ __forceinline__ void consumer_barrier() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// One thread: starts all copies of the block.
template <class C>
__device__ __forceinline__ void produce(const Sm90Params& params, const Ring& ring, int begin, int last) {
  const Params& p = params.common;
  const int64_t row_bytes = int64_t{p.n} * 8;
  const int rows = p.group_shift == 0 ? 2 : 1;
  const char* const weights = static_cast<const char*>(p.weight);
  prefetch_map(&params.tokens);
  {  // As in marlin_gemm.cu: into the L2 while the predecessor drains.
    const int tile = begin / p.partition.tile_units;
    const int n0 = tile_at(tile, p.m_tiles, p.n_tiles).n * C::kColumns;
    const int row = (begin - tile * p.partition.tile_units) * 2 * kSteps;
    const int bytes = min(C::kColumns, p.n - n0) * 8;
    for (int i = 0; i < min(C::kStages, 2 * (last - begin)) * kSteps && row + i < p.k / 16; ++i) {
      prefetch_bulk_l2(weights + (row + i) * row_bytes + n0 * 8, bytes);
    }
  }
  wait_for_predecessor();
  let_successor_start();

  Slot<C> slot;
  for (int unit = begin; unit < last; ++unit) {
    const int tile = unit / p.partition.tile_units;
    const TileIndex index = tile_at(tile, p.m_tiles, p.n_tiles);
    const int n0 = index.n * C::kColumns, columns = min(C::kColumns, p.n - n0);
    for (int half = 0; half < 2; ++half) {
      const int stage = (unit - tile * p.partition.tile_units) * 2 + half;
      wait_barrier(ring.empty + slot.index * 8, slot.parity ^ 1);
      const uint32_t full = ring.full + slot.index * 8;
      const uint32_t target = ring.base + slot.index * C::kTile.stage_bytes();
      const int zero_bytes = p.zeros != nullptr ? columns / 2 : 0;
      arrive_expect(full, C::kTile.token_bytes() + kSteps * columns * 8 + rows * (columns * 2 + zero_bytes));
      copy_box(target, &params.tokens, stage * 64, index.m * C::kTokens, full);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        copy_bulk(target + C::kWeights + step * (C::kColumns * 8),
                  weights + (stage * kSteps + step) * row_bytes + n0 * 8, columns * 8, full);
      }
      const int64_t group = stage * 2 >> p.group_shift;
      for (int row = 0; row < rows; ++row) {
        copy_bulk(target + C::kScales + row * (C::kColumns * 2),
                  static_cast<const char*>(p.scales) + ((group + row) * p.n + n0) * 2, columns * 2, full);
        if (zero_bytes > 0) {
          copy_bulk(target + C::kZeros + row * (C::kColumns / 2),
                    static_cast<const char*>(p.zeros) + ((group + row) * p.n + n0) / 2, zero_bytes, full);
        }
      }
      slot.advance();
    }
  }
}

// The scales and magic + zero points of a lane's columns i and i + 8 of its warp's 16, each twice in 32 bits.
struct Group {
  uint32_t scale[2];
  uint32_t offset[2];
};

// block: of 64 columns in the stage; warp: of the warpgroup.
template <class C>
__device__ __forceinline__ Group load_group(const Params& p, uint32_t stage, int row, int block, int warp,
                                            int i) {
  Group group;
  const uint32_t scales = stage + C::kScales + row * (C::kColumns * 2) + block * 128;
  uint32_t pair;
  if (p.groups > 1) {
    pair = load_shared_word(scales + i * 16 + warp * 4);
  } else {  // permuted per 32 columns
    const uint32_t four = scales + warp / 2 * 64 + i / 2 * 16 + warp % 2 * 8;
    pair = __byte_perm(load_shared_word(four), load_shared_word(four + 4), i % 2 ? 0x7632 : 0x5410);
  }
  group.scale[0] = twice_low(pair);
  group.scale[1] = twice_high(pair);
  const uint32_t zeros =
      p.zeros == nullptr ? 0x88888888u
                         : load_shared_word(stage + C::kZeros + row * (C::kColumns / 2) + block * 32 + i * 4);
  const uint32_t offset = nibbles<typename C::T>(zeros >> (4 * warp));
  group.offset[0] = twice_low(offset);
  group.offset[1] = twice_high(offset);
  return group;
}

template <class C>
struct Weights {
  uint32_t fragment[C::kBlocks][kSteps][4];
};

template <class C>
__device__ __forceinline__ void make_weights(const Params& p, Weights<C>& w, uint32_t stage, int group_warp,
                                             int warp, int lane) {
  using T = typename C::T;
#pragma unroll
  for (int b = 0; b < C::kBlocks; ++b) {
    const int block = group_warp * C::kBlocks + b;
    Group group = load_group<C>(p, stage, 0, block, warp, lane / 4);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step == 2 && p.group_shift == 0) group = load_group<C>(p, stage, 1, block, warp, lane / 4);
      const uint32_t x = load_shared_word(stage + C::kWeights + step * (C::kColumns * 8) + block * 512 +
                                          lane * 16 + warp * 4);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t q = nibbles<T>(x >> (e % 2 * 8 + e / 2 * 4));
        w.fragment[b][step][e] = multiply<T>(subtract<T>(q, group.offset[e % 2]), group.scale[e % 2]);
      }
    }
  }
}

template <class C>
using Sums = float[C::kBlocks][C::kTokens / 2];  // as [8 tokens][4], C fragments

// Where a thread's sums lie in a part: [64 columns][8 tokens][thread of a warpgroup].
template <class C>
__device__ __forceinline__ float4* part_of(const Params& p, int block, int group_warp) {
  return reinterpret_cast<float4*>(p.partial) + int64_t{block} * (C::kTokens * C::kColumns / 4) +
         group_warp * (C::kBlocks * C::kTokens / 8 * 128) + opaque(threadIdx.x) % 128;
}

template <class C>
__device__ __forceinline__ void hand_over(const Params& p, const Sums<C>& sum, int block, int group_warp,
                                          int rows) {
  float4* const part = part_of<C>(p, block, group_warp);
#pragma unroll
  for (int j = 0; j < C::kTokens / 8; ++j) {
    if (j * 8 >= rows) break;
#pragma unroll
    for (int b = 0; b < C::kBlocks; ++b) {
      const float* const x = sum[b] + j * 4;
      __stcg(part + (b * (C::kTokens / 8) + j) * 128, float4{x[0], x[1], x[2], x[3]});
    }
  }
}

template <class C>
__device__ __forceinline__ void collect(const Params& p, Sums<C>& sum, int block, int last, int group_warp,
                                        int rows) {
  if (threadIdx.x == 128) {
    while (load_acquire(p.arrivals + block) < last - block) {
    }
    p.arrivals[block] = 0;
  }
  consumer_barrier();
#pragma unroll 1
  for (int other = block + 1; other <= last; ++other) {
    const float4* const part = part_of<C>(p, other, group_warp);
#pragma unroll
    for (int j = 0; j < C::kTokens / 8; ++j) {
      if (j * 8 >= rows) break;
#pragma unroll
      for (int b = 0; b < C::kBlocks; ++b) {
        const float4 y = __ldcg(part + (b * (C::kTokens / 8) + j) * 128);
        float* const x = sum[b] + j * 4;
        x[0] += y.x, x[1] += y.y, x[2] += y.z, x[3] += y.w;
      }
      if (j % 4 == 3) asm volatile("" ::: "memory");  // no more loads at once than there are registers
    }
  }
}

// n0: of the warpgroup.
template <class C>
__device__ __forceinline__ void store_tile(const Params& p, const Sums<C>& sum, int m0, int n0, int warp,
                                           int lane) {
  using T = typename C::T;
#pragma unroll
  for (int b = 0; b < C::kBlocks; ++b) {
    const int n = n0 + b * 64 + warp * 16;
    if (n >= p.n) continue;
    const float bias[2] = {bias_at<T>(p, n + lane / 4), bias_at<T>(p, n + 8 + lane / 4)};
#pragma unroll
    for (int j = 0; j < C::kTokens / 8; ++j) {
      const float* const x = sum[b] + j * 4;
      // Transposed, lane / 4 is the token; the lane has two neighbouring columns of the first eight, and two
      // of the last. Even and odd lanes swap so that each stores eight bytes.
      uint32_t low = transpose(from_floats<T>(x[0] + bias[0], x[1] + bias[0]));
      uint32_t high = transpose(from_floats<T>(x[2] + bias[1], x[3] + bias[1]));
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
__device__ __forceinline__ void consume(const Params& p, const Ring& ring, int block, int begin, int last) {
  const int group_warp = __shfl_sync(0xffffffffu, threadIdx.x / 128 - 1, 0);  // the warpgroup
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32 % 4, 0), lane = threadIdx.x % 32;
  wait_for_predecessor();
  Slot<C> slot;
  int owed = -1;
  while (begin < last) {
    const int tile = begin / p.partition.tile_units;
    const int tile_begin = tile * p.partition.tile_units, tile_end = tile_begin + p.partition.tile_units;
    const int end = min(last, tile_end);
    Sums<C> sum = {};
    Weights<C> w[2];
    int done = -1;  // the slot whose products were committed last
#pragma unroll 1
    for (int unit = begin; unit < end; ++unit) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        wait_barrier(ring.full + slot.index * 8, slot.parity);
        const uint32_t stage = ring.base + slot.index * C::kTile.stage_bytes();
        make_weights<C>(p, w[half], stage, group_warp, warp, lane);
        const uint64_t tokens = operand_descriptor(stage);
        open_products();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
          for (int b = 0; b < C::kBlocks; ++b) {
            multiply_async<typename C::T, C::kTokens>(sum[b], w[half].fragment[b][step], tokens + step * 2);
          }
        }
        commit_products();
        wait_products<1>();
        if (done >= 0 && lane == 0) arrive(ring.empty + done * 8);
        done = slot.index;
        slot.advance();
      }
    }
    wait_products<0>();
    if (lane == 0) arrive(ring.empty + done * 8);

    // Opaque: what is computed of it must not lie in registers during the products.
    const TileIndex index = tile_at(opaque(tile), p.m_tiles, p.n_tiles);
    const int m0 = index.m * C::kTokens, n0 = index.n * C::kColumns + group_warp * (64 * C::kBlocks);
    if (end == last && owed >= 0) {
      consumer_barrier();
      if (threadIdx.x == 128) add_release(p.arrivals + owed, 1);
      owed = -1;
    }
    if (begin == tile_begin) {
      if (end < tile_end) {
        collect<C>(p, sum, block, p.partition.block_of(tile_end - 1, gridDim.x), group_warp, p.m - m0);
      }
      store_tile<C>(p, sum, m0, n0, opaque(warp), opaque(lane));
    } else {
      hand_over<C>(p, sum, block, group_warp, p.m - m0);
      owed = p.partition.block_of(tile_begin, gridDim.x);
    }
    begin = end;
  }
  if (owed >= 0) {
    consumer_barrier();
    if (threadIdx.x == 128) add_release(p.arrivals + owed, 1);
  }
}

template <class C>
__device__ __forceinline__ void run(const Sm90Params& params) {
  extern __shared__ char shared[];
  const Params& p = params.common;
  Ring ring;
  ring.base = (shared_address(shared) + 1023) & ~1023u;
  ring.full = ring.base + C::kStages * C::kTile.stage_bytes();
  ring.empty = ring.full + C::kStages * 8;
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::kStages; ++i) {
      init_barrier(ring.full + i * 8, 1);
      init_barrier(ring.empty + i * 8, kConsumers / 32);
    }
    fence_barriers();
  }
  __syncthreads();

  // A block waits for those after it in the list, which therefore come first in the grid.
  const int block = gridDim.x - 1 - blockIdx.x;
  const int begin = p.partition.first(block, gridDim.x), last = p.partition.first(block + 1, gridDim.x);
  if (threadIdx.x < 128) {
    give_up_registers<40>();
    if (threadIdx.x == 0) produce<C>(params, ring, begin, last);
  } else {
    take_registers<232>();
    consume<C>(p, ring, block, begin, last);
  }
}

}  // namespace sglk::marlin_gemm::sm90
