// out = a · W for W quantized in Marlin tiles, fp16 and bf16, sm_80 and later.
//
//   W[k, n] = (Q[k, n] − Z[g, n]) · S[g, n]    g = k / group_size, or g_idx[k]
//
// Q: 4 bits (Z given, or 8), 8 bits (Z = 128), or float8 e4m3 (no Z). Q − Z is exact, the product with S is
// rounded to the type of a, sums are fp32. Nothing is atomic: results are equal bit by bit over repeats.
//
// A block owns a piece of the list of all tiles' stages (marlin_gemm.h). A piece that holds a whole tile
// writes `out`; the others write fp32 partial tiles, which `reduce` adds in the order of k.
//
//   block: tile.m × 256 columns      warp: (tile.m / m_warps) × 64 columns × (stage rows / k_warps)
//
//              4 warps of 64 columns
//            ┌─────┬─────┬─────┬─────┐        A lane's 16 (8 bit: 32) bytes of a 16 × 64 weight tile are its
//            B
//   k_warp 0 │     │     │     │     │        fragments of eight n8 tiles; lane group i = lane / 4 owns the
//            ├─────┼─────┼─────┼─────┤        columns i + 8t, whose scales are 16 consecutive bytes and whose
//   k_warp 1 │     │     │     │     │        zero points are one word.
//            └─────┴─────┴─────┴─────┘
#include "marlin_gemm.h"

#include "common/dequantize.cuh"
#include "common/mma.cuh"
#include "common/pdl.cuh"

namespace sglk::marlin_gemm {

enum class Weight { kInt4, kInt8, kFloat8 };

template <class T_, Weight kWeight_, bool kIsActOrder_, int kM, int kK, int kKWarps, int kStages_,
          int kMinBlocks>
struct Config {
  using T = T_;
  static constexpr Weight kWeight = kWeight_;
  static constexpr bool kIsActOrder = kIsActOrder_;
  static constexpr Tile kTile{kM, kK, kKWarps, kStages_, kMinBlocks};
  static constexpr int kStages = kStages_;
  static constexpr int kBits = kWeight == Weight::kInt4 ? 4 : 8;
  static constexpr int kMWarps = kThreads / 32 / 4 / kKWarps;
  static constexpr int kMTiles = kM / 16 / kMWarps;  // m16 tiles of a warp
  static constexpr int kSteps = kK / 16 / kKWarps;   // k16 steps of a warp in a stage
  static constexpr int kStageBytes = kTile.stage_bytes(kBits);
  static constexpr int kB = kTile.a_bytes();  // offsets in a stage
  static constexpr int kScales = kB + kTile.b_bytes(kBits);
  static constexpr int kZeros = kScales + kTile.scale_bytes();
  static_assert(kMTiles * kMWarps * 16 == kM && kSteps * kKWarps * 16 == kK);
  static_assert(kKWarps == 1 || 4 * 32 * kMTiles * 8 * 4 * 4 <= kTile.shared_bytes(kBits), "the k reduction");
};

// Position of a 16-byte chunk of a in its [rows, kK] tile: chunks are permuted so that ldmatrix, and the
// copies, meet every bank once.
template <int kK>
__device__ __forceinline__ int a_chunk(int row, int chunk) {
  return row * (kK / 8) + (chunk ^ (row % 8));
}

// Starts the copies of one stage; rows and columns beyond the matrices become zeros.
template <class C>
__device__ __forceinline__ void copy_stage(const Params& p, uint32_t shared, int m0, int n0, int stage) {
  constexpr Tile kTile = C::kTile;
  const int tid = threadIdx.x;
  const int k0 = stage * kTile.k;
  const char* const a = static_cast<const char*>(p.a);
#pragma unroll
  for (int i = 0; i < kTile.a_bytes() / 16; i += kThreads) {
    const int index = i + tid;
    if (kTile.a_bytes() / 16 % kThreads == 0 || index < kTile.a_bytes() / 16) {
      const int row = index / (kTile.k / 8), chunk = index % (kTile.k / 8);
      const bool is_valid = m0 + row < p.m;
      const int64_t source = is_valid ? int64_t{m0 + row} * p.a_stride + k0 + chunk * 8 : 0;
      copy_async(shared + a_chunk<kTile.k>(row, chunk) * 16, a + source * 2, is_valid);
    }
  }

  // A row of weight tiles is contiguous: 16 × 64 weights take kBlock chunks, kRow make the columns of a
  // block.
  constexpr int kBlock = 16 * 64 * C::kBits / 8 / 16, kRow = kBlock * (kTileN / 64);
  const char* const weight = static_cast<const char*>(p.weight);
  const int64_t row_bytes = int64_t{p.n} * C::kBits * 2;
#pragma unroll
  for (int i = 0; i < kTile.k / 16 * kRow; i += kThreads) {
    const int index = i + tid;
    const int row = index / kRow, chunk = index % kRow;
    const bool is_valid = n0 + chunk / kBlock * 64 < p.n;
    const int64_t source =
        is_valid ? (int64_t{k0 / 16 + row}) * row_bytes + int64_t{n0} * C::kBits * 2 + chunk * 16 : 0;
    copy_async(shared + C::kB + index * 16, weight + source, is_valid);
  }

  if constexpr (!C::kIsActOrder) {
    const int rows = max(1, kTile.k / p.group_size);
    const int64_t group = k0 / p.group_size;
    constexpr int kScaleChunks = kTileN / 8, kZeroChunks = kTileN / 32;
    const int row = tid / kScaleChunks, chunk = tid % kScaleChunks;
    if (row < rows) {
      const bool is_valid = n0 + chunk * 8 < p.n;
      const int64_t source = is_valid ? (group + row) * p.n + n0 + chunk * 8 : 0;
      copy_async(shared + C::kScales + tid * 16, static_cast<const char*>(p.scales) + source * 2, is_valid);
    }
    if (C::kWeight == Weight::kInt4 && p.zeros != nullptr && tid < rows * kZeroChunks) {
      const int zero_row = tid / kZeroChunks, zero_chunk = tid % kZeroChunks;
      const bool is_valid = n0 + zero_chunk * 32 < p.n;
      const int64_t source = is_valid ? ((group + zero_row) * p.n + n0) / 2 + zero_chunk * 16 : 0;
      copy_async(shared + C::kZeros + tid * 16, static_cast<const char*>(p.zeros) + source, is_valid);
    }
  }
}

// The scales and zero points of a lane's eight columns, each twice in 32 bits.
struct Group {
  uint32_t scale[8];
  uint32_t offset[8];  // of 4-bit weights: magic + z
};

template <class C>
__device__ __forceinline__ void load_group(const Params& p, Group& group, uint32_t stage, int row, int warp_n,
                                           int lane) {
  using T = typename C::T;
  const int i = lane / 4;
  const uint32_t scales = stage + C::kScales + (row * kTileN + warp_n * 64) * 2;
  if (p.groups > 1) {
    const uint4 v = load_shared(scales + i * 16);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      group.scale[2 * j] = twice_low(words[j]);
      group.scale[2 * j + 1] = twice_high(words[j]);
    }
  } else {
    const uint4 v = load_shared(scales + i / 2 * 16), w = load_shared(scales + 64 + i / 2 * 16);
    const uint32_t words[8] = {v.x, v.y, v.z, v.w, w.x, w.y, w.z, w.w};
#pragma unroll
    for (int t = 0; t < 8; ++t) group.scale[t] = __byte_perm(words[t], 0, i % 2 ? 0x3232 : 0x1010);
  }
  if constexpr (C::kWeight == Weight::kInt4) {
    const uint32_t zeros =
        p.zeros != nullptr ? load_shared_word(stage + C::kZeros + row * (kTileN / 2) + (warp_n * 8 + i) * 4)
                           : 0x88888888u;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t pair = nibbles<T>(zeros >> (4 * j));
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

// Scales of the two rows r, r + 1 (or r + 8, r + 9) in the column of n8 tile t.
__device__ __forceinline__ uint32_t row_scale(const uint4& first, const uint4& second, int t) {
  return __byte_perm(word(first, t / 2), word(second, t / 2), t % 2 ? 0x7632 : 0x5410);
}

// One stage: kSteps steps of k16.
template <class C>
__device__ __forceinline__ void multiply_stage(const Params& p, float (&sum)[C::kMTiles][8][4], Group& group,
                                               uint32_t stage, int k0, int n0, int warp_m, int warp_n,
                                               int warp_k) {
  using T = typename C::T;
  constexpr int kBlockBytes = 16 * 64 * C::kBits / 8;
  const int lane = threadIdx.x % 32;
  const int group_steps_log2 = 27 - __clz(min(p.group_size, C::kTile.k));  // of k16 steps
#pragma unroll
  for (int s = 0; s < C::kSteps; ++s) {
    const int step = warp_k * C::kSteps + s;
    uint4 row_scales[4];
    if constexpr (C::kIsActOrder) {
      const int column = min(n0 + warp_n * 64, p.n - 64);
      load_row_scales(p, row_scales, k0 + step * 16, column, lane);
    } else if (s % 2 == 0) {
      if (s == 0 || (step & ((1 << group_steps_log2) - 1)) == 0) {
        const int row = step >> group_steps_log2;
        load_group<C>(p, group, stage, row, warp_n, lane);
      }
    }

    uint32_t a[C::kMTiles][4];
#pragma unroll
    for (int i = 0; i < C::kMTiles; ++i) {
      const int row = (warp_m * C::kMTiles + i) * 16 + lane % 16;
      load_matrices(a[i], stage + a_chunk<C::kTile.k>(row, step * 2 + lane / 16) * 16);
    }

    const uint32_t weights =
        stage + C::kB + (step * (kTileN / 64) + warp_n) * kBlockBytes + lane * (kBlockBytes / 32);
    uint4 packed[C::kBits / 4];
#pragma unroll
    for (int i = 0; i < C::kBits / 4; ++i) packed[i] = load_shared(weights + i * 16);
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      uint32_t b[2];
      if constexpr (C::kWeight == Weight::kInt4) {
        const uint32_t w = word(packed[0], t / 2) >> (t % 2 * 8);
        const uint32_t offset = C::kIsActOrder ? nibbles<T>(0x00080008) : group.offset[t];
        b[0] = subtract<T>(nibbles<T>(w), offset);
        b[1] = subtract<T>(nibbles<T>(w >> 4), offset);
      } else {
        const uint32_t w = word(packed[t / 4], t % 4);
        if constexpr (C::kWeight == Weight::kInt8) {
          b[0] = centred_bytes<T, true>(w);
          b[1] = centred_bytes<T, false>(w);
        } else {
          b[0] = float8_bytes<T, true>(w);
          b[1] = float8_bytes<T, false>(w);
        }
      }
      if constexpr (C::kIsActOrder) {
        b[0] = multiply<T>(b[0], row_scale(row_scales[0], row_scales[1], t));
        b[1] = multiply<T>(b[1], row_scale(row_scales[2], row_scales[3], t));
      } else {
        b[0] = multiply<T>(b[0], group.scale[t]);
        b[1] = multiply<T>(b[1], group.scale[t]);
      }
#pragma unroll
      for (int i = 0; i < C::kMTiles; ++i) mma<T>(sum[i][t], a[i], b[0], b[1]);
    }
  }
}

// The second half of the warps hands its sums to the first through shared memory.
template <class C>
__device__ __forceinline__ void add_k_warps(float (&sum)[C::kMTiles][8][4], char* shared, int warp_n,
                                            int warp_k) {
  float* const sums = reinterpret_cast<float*>(shared) + warp_n * (C::kMTiles * 32 * 32) + threadIdx.x % 32;
  if (warp_k == 1) {
#pragma unroll
    for (int i = 0; i < C::kMTiles * 32; ++i) sums[i * 32] = sum[i / 32][i / 4 % 8][i % 4];
  }
  __syncthreads();
  if (warp_k == 0) {
#pragma unroll
    for (int i = 0; i < C::kMTiles * 32; ++i) sum[i / 32][i / 4 % 8][i % 4] += sums[i * 32];
  }
}

// The bias of columns n and n + 1 for even n.
template <class T>
__device__ __forceinline__ float2 bias_pair(const Params& p, int n) {
  if (p.bias == nullptr) return {0.0f, 0.0f};
  const T* const pair = static_cast<const T*>(p.bias) + (n / 32 * 32 + n % 8 / 2 * 8 + n % 32 / 8 * 2);
  return {to_float(pair[0]), to_float(pair[1])};
}

template <class T>
__device__ __forceinline__ uint32_t bits16(T x) {
  return reinterpret_cast<const uint16_t&>(x);
}

template <class T>
__device__ __forceinline__ void store_pair(const Params& p, int64_t m, int n, float x, float y) {
  const float2 bias = bias_pair<T>(p, n);
  T pair[2] = {from_float<T>(x + bias.x), from_float<T>(y + bias.y)};
  *reinterpret_cast<uint32_t*>(static_cast<T*>(p.out) + m * p.out_stride + n) =
      static_cast<uint32_t>(__byte_perm(bits16(pair[0]), bits16(pair[1]), 0x5410));
}

template <class C>
__device__ __forceinline__ void run(const Params& p) {
  using T = typename C::T;
  constexpr Tile kTile = C::kTile;
  extern __shared__ __align__(128) char shared[];
  const uint32_t shared_base = shared_address(shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_n = warp % 4;
  const int warp_m = kTile.k_warps == 1 ? warp / 4 : 0, warp_k = kTile.k_warps == 1 ? 0 : warp / 4;
  const int total = p.m_tiles * p.n_tiles * p.tile_stages;
  const int last = first_stage(blockIdx.x + 1, gridDim.x, total);
  int begin = first_stage(blockIdx.x, gridDim.x, total);
  wait_for_predecessor();
  let_successor_start();

  while (begin < last) {
    const int tile = begin / p.tile_stages;
    const int tile_begin = tile * p.tile_stages, tile_end = tile_begin + p.tile_stages;
    const int end = min(last, tile_end);
    const TileIndex index = tile_at(tile, p.m_tiles, p.n_tiles);
    const int m0 = index.m * kTile.m, n0 = index.n * kTileN;

    float sum[C::kMTiles][8][4] = {};
    Group group;
#pragma unroll
    for (int s = 0; s < C::kStages - 1; ++s) {
      if (begin + s < end) copy_stage<C>(p, shared_base + s * C::kStageBytes, m0, n0, begin + s - tile_begin);
      commit_copies();
    }
    int slot = 0, free_slot = C::kStages - 1;
    for (int it = begin; it < end; ++it) {
      wait_copies<C::kStages - 2>();
      __syncthreads();
      const int ahead = it + C::kStages - 1;
      if (ahead < end) copy_stage<C>(p, shared_base + free_slot * C::kStageBytes, m0, n0, ahead - tile_begin);
      commit_copies();
      multiply_stage<C>(p, sum, group, shared_base + slot * C::kStageBytes, (it - tile_begin) * kTile.k, n0,
                        warp_m, warp_n, warp_k);
      free_slot = slot;
      slot = slot + 1 == C::kStages ? 0 : slot + 1;
    }
    wait_copies<0>();
    __syncthreads();
    if constexpr (kTile.k_warps == 2) add_k_warps<C>(sum, shared, warp_n, warp_k);

    const bool is_whole = begin == tile_begin && end == tile_end;
    float* const partial = p.partial + (int64_t{blockIdx.x} * 2 + (begin == tile_begin)) * (kTile.m * kTileN);
    if (warp_k == 0 && n0 + warp_n * 64 < p.n) {
#pragma unroll
      for (int i = 0; i < C::kMTiles * 2; ++i) {
        const int row = (warp_m * C::kMTiles + i / 2) * 16 + i % 2 * 8 + lane / 4;
        if (m0 + row < p.m) {
#pragma unroll
          for (int t = 0; t < 8; ++t) {
            const int column = warp_n * 64 + t * 8 + lane % 4 * 2;
            const float x = sum[i / 2][t][i % 2 * 2], y = sum[i / 2][t][i % 2 * 2 + 1];
            if (is_whole) {
              store_pair<T>(p, m0 + row, n0 + column, x, y);
            } else {
              *reinterpret_cast<float2*>(partial + row * kTileN + column) = {x, y};
            }
          }
        }
      }
    }
    if (end < last) __syncthreads();  // the sums of the k warps are read before the next tile's copies land
    begin = end;
  }
}

// Adds the partial tiles, in the order of k. Grid: (tiles, tile rows / 4); a thread has four columns of a
// row.
template <class T>
__device__ __forceinline__ void reduce(const Params& p) {
  const int tile = blockIdx.x, total = p.m_tiles * p.n_tiles * p.tile_stages;
  const int first = block_of(tile * p.tile_stages, p.blocks, total);
  const int last = block_of((tile + 1) * p.tile_stages - 1, p.blocks, total);
  const TileIndex index = tile_at(tile, p.m_tiles, p.n_tiles);
  const int row = blockIdx.y * (kThreads / 64) + threadIdx.x / 64, column = threadIdx.x % 64 * 4;
  const int m = index.m * p.tile_m + row, n = index.n * kTileN + column;
  wait_for_predecessor();
  let_successor_start();
  if (first == last || m >= p.m || n >= p.n) return;

  // A piece that begins its tile lies in the second slot of its block; only the first piece does.
  const int64_t tile_size = int64_t{p.tile_m} * kTileN;
  const float* const source = p.partial + row * kTileN + column;
  float4 sum = *reinterpret_cast<const float4*>(source + (2 * int64_t{first} + 1) * tile_size);
#pragma unroll 4
  for (int block = first + 1; block <= last; ++block) {
    const float4 x = *reinterpret_cast<const float4*>(source + 2 * int64_t{block} * tile_size);
    sum.x += x.x;
    sum.y += x.y;
    sum.z += x.z;
    sum.w += x.w;
  }
  store_pair<T>(p, m, n, sum.x, sum.y);
  store_pair<T>(p, m, n + 2, sum.z, sum.w);
}

// out[m, k] = a[m, perm[k]]. Grid: (m in x, blocks of kThreads columns in y). An index out of range gives 0.
__device__ __forceinline__ void gather(const Params& p) {
  const int k = blockIdx.y * kThreads + threadIdx.x;
  wait_for_predecessor();
  let_successor_start();
  if (k >= p.k) return;
  const int64_t m = blockIdx.x;
  const int source = p.perm != nullptr ? p.perm[k] : k;
  static_cast<uint16_t*>(p.out)[m * p.k + k] =
      source >= 0 && source < p.k ? static_cast<const uint16_t*>(p.a)[m * p.a_stride + source] : uint16_t{0};
}

}  // namespace sglk::marlin_gemm

#define SGLK_MARLIN_ENTRY(dtype, name, min_blocks, body)                                  \
  extern "C" __global__ void __launch_bounds__(sglk::marlin_gemm::kThreads, min_blocks)   \
      marlin_gemm_##dtype##_##name(const __grid_constant__ sglk::marlin_gemm::Params p) { \
    body;                                                                                 \
  }

#define SGLK_MARLIN_GEMM(dtype, type, name, weight, is_act_order, tile)                                    \
  SGLK_MARLIN_ENTRY(dtype, name, sglk::marlin_gemm::tile.min_blocks,                                       \
                    (sglk::marlin_gemm::run<sglk::marlin_gemm::Config<                                     \
                         type, sglk::marlin_gemm::Weight::weight, is_act_order, sglk::marlin_gemm::tile.m, \
                         sglk::marlin_gemm::tile.k, sglk::marlin_gemm::tile.k_warps,                       \
                         sglk::marlin_gemm::tile.stages, sglk::marlin_gemm::tile.min_blocks>>(p)))

#define SGLK_MARLIN_DTYPE(dtype, type)                                      \
  SGLK_MARLIN_GEMM(dtype, type, u4_m16, kInt4, false, kTile16)              \
  SGLK_MARLIN_GEMM(dtype, type, u4_m32, kInt4, false, kTile32)              \
  SGLK_MARLIN_GEMM(dtype, type, u4_m64, kInt4, false, kTile64)              \
  SGLK_MARLIN_GEMM(dtype, type, u4_m128, kInt4, false, kTile128)            \
  SGLK_MARLIN_GEMM(dtype, type, u8_m16, kInt8, false, kTile16Byte)          \
  SGLK_MARLIN_GEMM(dtype, type, u8_m64, kInt8, false, kTile64Byte)          \
  SGLK_MARLIN_GEMM(dtype, type, fp8_m16, kFloat8, false, kTile16Byte)       \
  SGLK_MARLIN_GEMM(dtype, type, fp8_m64, kFloat8, false, kTile64Byte)       \
  SGLK_MARLIN_GEMM(dtype, type, u4_act_order_m64, kInt4, true, kTile64)     \
  SGLK_MARLIN_GEMM(dtype, type, u8_act_order_m64, kInt8, true, kTile64Byte) \
  SGLK_MARLIN_ENTRY(dtype, reduce, 1, sglk::marlin_gemm::reduce<type>(p))   \
  SGLK_MARLIN_ENTRY(dtype, gather, 1, sglk::marlin_gemm::gather(p))

SGLK_MARLIN_DTYPE(bf16, sglk::bf16)
SGLK_MARLIN_DTYPE(f16, sglk::f16)
