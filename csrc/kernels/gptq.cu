// fp16 activations times GPTQ weights of 2, 3, 4 or 8 bits, for sm_80 and later.
//
//   output[m, n] = Σ_k a[m, perm[k]] · (q[k, n] − zero[g, n]) · scales[g, n],  g = g_idx[k] or k / group_size
//
// Weights are handled in units of 32 rows of one column: exactly `bits` words, whatever the bits. fp32
// accumulation. Blocks may share K; each then leaves its sum in `partial` and gptq_reduce adds them in order:
// the result is the same every time.
//
//   rows_1, rows_4  up to 1 or 4 rows of a: a thread owns a column, a in shared memory as fp32
//   tile            64 rows × 128 columns of output a block: weights dequantized to fp16 (one rounding) into
//                   shared memory, mma.m16n8k16
//
// grouped: a unit lies within one group (group_size % 32 = 0, no g_idx). indexed: each row has its own group.
// Rows and groups that do not exist, which only a bad index can name, count as zeros.
#include "common/pdl.cuh"
#include "common/vector.cuh"
#include "gptq.h"

namespace sglk {

constexpr int kUnit = 32;          // rows
constexpr int kGptqThreads = 128;  // and columns of a block
constexpr int kStageUnits = 8;     // of a in shared memory at a time (rows_*)
constexpr int kTileRows = 64;      // of output (tile)
constexpr int kPitch = kUnit + 8;  // halves between rows in shared memory: no bank conflicts of 16 bytes

// Value i (bits i · kBits …) of a unit's words, kBits each, in the low bits of a float's mantissa: 2^23 + q.
template <int kBits>
__device__ __forceinline__ float biased_value(const uint32_t (&word)[kBits], int i) {
  const int bit = i * kBits, w = bit / 32, shift = bit % 32;
  uint32_t bits = word[w] >> shift;
  if (shift + kBits > 32) bits = __funnelshift_r(word[w], word[w + 1 < kBits ? w + 1 : w], shift);
  return __uint_as_float((bits & ((1u << kBits) - 1)) | 0x4b000000u);
}

// The zero point of a group and column, offset likewise: 2^23 + stored + 1.
template <int kBits>
__device__ __forceinline__ float biased_zero(const GptqParams& p, int64_t group, int column) {
  const int64_t row = group * (int64_t{p.n} * kBits / 32);
  const int64_t bit = int64_t{column} * kBits;
  const int shift = bit % 32;
  uint32_t bits = p.qzeros[row + bit / 32] >> shift;
  if (32 % kBits != 0 && shift + kBits > 32) bits |= p.qzeros[row + bit / 32 + 1] << (32 - shift);
  return 8388608.0f + static_cast<float>((bits & ((1u << kBits) - 1)) + 1);
}

__device__ __forceinline__ float scale_of(const GptqParams& p, int64_t group, int column) {
  return to_float(static_cast<const f16*>(p.scales)[group * p.n + column]);
}

// The words of a unit; zeros beyond the last row of weights.
template <int kBits>
__device__ __forceinline__ void load_unit(uint32_t (&word)[kBits], const GptqParams& p, int unit,
                                          int column) {
  const int rows = static_cast<int>(int64_t{p.k} * kBits / 32);
#pragma unroll
  for (int w = 0; w < kBits; ++w) {
    const int64_t row = int64_t{unit} * kBits + w;
    word[w] = row < rows ? p.qweight[row * p.n + column] : 0;
  }
}

// The column of a that row k of the weights multiplies, or −1.
__device__ __forceinline__ int source_of(const GptqParams& p, int k) {
  if (k >= p.k) return -1;
  const int source = p.perm != nullptr ? p.perm[k] : k;
  return source >= 0 && source < p.k ? source : -1;
}

// The group of row k, or −1.
__device__ __forceinline__ int group_of(const GptqParams& p, int k) {
  if (k >= p.k) return -1;
  const int group = p.g_idx != nullptr ? p.g_idx[k] : k / p.group_size;
  return group >= 0 && group < p.groups ? group : -1;
}

// Scale and offset zero point of a column in a group; without one the scale is 0.
template <int kBits>
struct Affine {
  float scale, zero;
  __device__ __forceinline__ Affine(const GptqParams& p, int group, int column)
      : scale(scale_of(p, max(group, 0), column)), zero(biased_zero<kBits>(p, max(group, 0), column)) {
    if (group < 0) scale = 0.0f;
  }
};

struct Block {
  int row_block, column_block, split;
};

// Blocks that read the same weights are neighbours.
__device__ __forceinline__ Block this_block(const GptqParams& p) {
  const unsigned b = blockIdx.x, rows = p.row_blocks, columns = p.column_blocks;
  return {static_cast<int>(b % rows), static_cast<int>(b / rows % columns),
          static_cast<int>(b / rows / columns)};
}

template <int kBits, bool kIsIndexed, int kRows>
__device__ __forceinline__ void gptq_rows(const GptqParams& p) {
  __shared__ __align__(16) float a[kStageUnits * kUnit][kRows];
  __shared__ int groups[kIsIndexed ? kStageUnits * kUnit : 1];
  const Block block = this_block(p);
  const int n = block.column_block * kGptqThreads + threadIdx.x;
  const int column = min(n, p.n - 1);
  const int units = (p.k + kUnit - 1) / kUnit;
  const int begin = block.split * p.units_per_split;
  const int end = min(begin + p.units_per_split, units);
  wait_for_predecessor();
  let_successor_start();

  float sum[kRows] = {};
  for (int stage = begin; stage < end; stage += kStageUnits) {
    __syncthreads();  // everyone is done with the stage before
    for (int i = threadIdx.x; i < kStageUnits * kUnit; i += kGptqThreads) {
      const int k = stage * kUnit + i, source = source_of(p, k);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        const bool is_there = source >= 0 && m < p.m;
        a[i][m] = is_there ? to_float(static_cast<const f16*>(p.a)[m * p.a_stride + source]) : 0.0f;
      }
      if constexpr (kIsIndexed) groups[i] = group_of(p, k);
    }
    __syncthreads();
    const int stage_end = min(stage + kStageUnits, end);
#pragma unroll(kIsIndexed ? 1 : 2)
    for (int unit = stage; unit < stage_end; ++unit) {
      uint32_t word[kBits];
      load_unit(word, p, unit, column);
      const int first = (unit - stage) * kUnit;
      if constexpr (kIsIndexed) {
#pragma unroll
        for (int i = 0; i < kUnit; ++i) {
          const Affine<kBits> group(p, groups[first + i], column);
          const float weight = (biased_value<kBits>(word, i) - group.zero) * group.scale;
#pragma unroll
          for (int m = 0; m < kRows; ++m) sum[m] += a[first + i][m] * weight;
        }
      } else {
        const Affine<kBits> group(p, unit * kUnit / p.group_size, column);
        float unit_sum[kRows] = {};
#pragma unroll
        for (int i = 0; i < kUnit; ++i) {
          const float difference = biased_value<kBits>(word, i) - group.zero;
#pragma unroll
          for (int m = 0; m < kRows; ++m) unit_sum[m] += a[first + i][m] * difference;
        }
#pragma unroll
        for (int m = 0; m < kRows; ++m) sum[m] += group.scale * unit_sum[m];
      }
    }
  }
  if (n >= p.n) return;
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    if (m >= p.m) break;
    const int64_t at = int64_t{m} * p.n + n;
    if (p.partial != nullptr) {
      p.partial[int64_t{block.split} * p.m * p.n + at] = sum[m];
    } else {
      static_cast<f16*>(p.output)[at] = from_float<f16>(sum[m]);
    }
  }
}

// Four 8 × 8 matrices of halves; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const f16* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// PTX ISA, mma.m16n8k16: c += a · b.
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// What a thread has under way for the next unit: half a row of a, and its column of weights.
template <int kBits>
struct Fetched {
  Vector<f16, 8> a[2];
  uint32_t word[kBits];
};

// Thread t of a block has row t / 2 of a, 16 columns from 16 · (t % 2).
template <int kBits>
__device__ __forceinline__ void fetch(Fetched<kBits>& next, const GptqParams& p, int unit, int row,
                                      int column) {
  load_unit(next.word, p, unit, column);
  const f16* const a = static_cast<const f16*>(p.a) + int64_t{row} * p.a_stride;
  const int first = unit * kUnit + threadIdx.x % 2 * 16;
  const bool is_row = row < p.m;
  if (p.is_a_aligned && p.perm == nullptr) {
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      next.a[v] = {};
      if (is_row && first + 8 * v < p.k) next.a[v] = load<f16, 8>(a + first + 8 * v);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int source = source_of(p, first + i);
      next.a[i / 8][i % 8] = is_row && source >= 0 ? a[source] : from_float<f16>(0.0f);
    }
  }
}

template <int kBits, bool kIsIndexed>
__device__ __forceinline__ void gptq_tile(const GptqParams& p) {
  __shared__ __align__(16) f16 a_tile[2][kTileRows][kPitch];
  __shared__ __align__(16) f16 b_tile[2][kGptqThreads][kPitch];  // [column][k]
  const Block block = this_block(p);
  const int first_row = block.row_block * kTileRows, first_column = block.column_block * kGptqThreads;
  const int column = min(first_column + static_cast<int>(threadIdx.x), p.n - 1);
  const int row = first_row + threadIdx.x / 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int units = (p.k + kUnit - 1) / kUnit;
  const int begin = block.split * p.units_per_split;
  const int end = min(begin + p.units_per_split, units);
  wait_for_predecessor();
  let_successor_start();

  float sum[4][4][4] = {};  // [16 rows][8 columns][fragment]: a warp has 64 rows × 32 columns
  Fetched<kBits> next;
  if (begin < end) fetch(next, p, begin, row, column);
  for (int unit = begin; unit < end; ++unit) {
    const int buffer = (unit - begin) % 2;

    // Registers to shared memory, dequantized.
    f16* const a_row = &a_tile[buffer][threadIdx.x / 2][threadIdx.x % 2 * 16];
    store(a_row, next.a[0]);
    store(a_row + 8, next.a[1]);
    const Affine<kBits> unit_group(p, kIsIndexed ? 0 : unit * kUnit / p.group_size, column);
#pragma unroll
    for (int v = 0; v < kUnit / 8; ++v) {
      Vector<f16, 8> weights;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const Affine<kBits> group =
            kIsIndexed ? Affine<kBits>(p, group_of(p, unit * kUnit + 8 * v + i), column) : unit_group;
        const float difference = biased_value<kBits>(next.word, 8 * v + i) - group.zero;
        weights[i] = from_float<f16>(difference * group.scale);
      }
      store(&b_tile[buffer][threadIdx.x][8 * v], weights);
    }
    // One barrier a unit: whoever passes it has finished the products of the unit before, the last readers
    // of the other buffer.
    __syncthreads();
    if (unit + 1 < end) fetch(next, p, unit + 1, row, column);

    uint32_t b[4][4];  // [8 columns][8 rows of k]
#pragma unroll
    for (int j = 0; j < 4; ++j)
      load_matrices(b[j], &b_tile[buffer][warp * 32 + j * 8 + lane % 8][lane / 8 * 8]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        uint32_t a[4];
        load_matrices(a, &a_tile[buffer][i * 16 + lane % 16][step * 16 + lane / 16 * 8]);
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_add(sum[i][j], a, b[j][2 * step], b[j][2 * step + 1]);
      }
    }
  }

  // n is even: two neighbours exist together.
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int n = first_column + warp * 32 + j * 8 + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = first_row + i * 16 + half * 8 + lane / 4;
        if (m >= p.m || n >= p.n) continue;
        const float x = sum[i][j][2 * half], y = sum[i][j][2 * half + 1];
        const int64_t at = int64_t{m} * p.n + n;
        if (p.partial != nullptr) {
          *reinterpret_cast<float2*>(p.partial + int64_t{block.split} * p.m * p.n + at) = {x, y};
        } else {
          *reinterpret_cast<__half2*>(static_cast<f16*>(p.output) + at) = __floats2half2_rn(x, y);
        }
      }
    }
  }
}

// output = the sum of the splits, first to last.
__device__ __forceinline__ void gptq_reduce_splits(const GptqParams& p) {
  const int64_t count = int64_t{p.m} * p.n;
  const int64_t i = (int64_t{blockIdx.x} * kGptqThreads + threadIdx.x) * 4;  // n % 4 = 0
  wait_for_predecessor();
  let_successor_start();
  if (i >= count) return;
  float4 sum = {};
#pragma unroll 4
  for (int s = 0; s < p.splits; ++s) {
    const float4 x = *reinterpret_cast<const float4*>(p.partial + s * count + i);
    sum = {sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w};
  }
  Vector<f16, 4> out;
  out[0] = from_float<f16>(sum.x);
  out[1] = from_float<f16>(sum.y);
  out[2] = from_float<f16>(sum.z);
  out[3] = from_float<f16>(sum.w);
  store(static_cast<f16*>(p.output) + i, out);
}

// Row k of the output = row perm[k] of qweight; a row that does not exist is zero. A thread makes a unit of a
// column, or of it what there is.
template <int kBits>
__device__ __forceinline__ void gptq_shuffle_rows(const GptqParams& p) {
  const Block block = this_block(p);
  const int n = block.column_block * kGptqThreads + threadIdx.x;
  const int unit = block.split;
  wait_for_predecessor();
  let_successor_start();
  if (n >= p.n) return;
  uint32_t word[kBits] = {};
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    const int source = source_of(p, unit * kUnit + i);
    const int64_t bit = int64_t{max(source, 0)} * kBits;
    const int from = bit % 32;
    const uint32_t* const first = p.qweight + bit / 32 * p.n + n;
    uint32_t value = first[0] >> from;
    if (32 % kBits != 0 && from + kBits > 32) value |= first[p.n] << (32 - from);
    value = source >= 0 ? value & ((1u << kBits) - 1) : 0;
    const int at = i * kBits;
    word[at / 32] |= value << (at % 32);
    if (at % 32 + kBits > 32) word[at / 32 + 1 < kBits ? at / 32 + 1 : 0] |= value >> (32 - at % 32);
  }
  const int rows = static_cast<int>(int64_t{p.k} * kBits / 32);
#pragma unroll
  for (int w = 0; w < kBits; ++w) {
    const int64_t row = int64_t{unit} * kBits + w;
    if (row < rows) static_cast<uint32_t*>(p.output)[row * p.n + n] = word[w];
  }
}

// output = qweight, of rows `k` words and `n` columns in all.
__device__ __forceinline__ void gptq_copy_words(const GptqParams& p) {
  const int64_t i = int64_t{blockIdx.x} * kGptqThreads + threadIdx.x;
  wait_for_predecessor();
  let_successor_start();
  if (i < int64_t{p.k} * p.n) static_cast<uint32_t*>(p.output)[i] = p.qweight[i];
}

}  // namespace sglk

#define SGLK_GPTQ(name, function)                                  \
  extern "C" __global__ void __launch_bounds__(sglk::kGptqThreads) \
      gptq_##name(const __grid_constant__ sglk::GptqParams p) {    \
    function(p);                                                   \
  }

#define SGLK_GPTQ_GROUPING(bits, grouping, is_indexed)                                 \
  SGLK_GPTQ(gemm_##bits##_##grouping##_rows_1, (sglk::gptq_rows<bits, is_indexed, 1>)) \
  SGLK_GPTQ(gemm_##bits##_##grouping##_rows_4, (sglk::gptq_rows<bits, is_indexed, 4>)) \
  SGLK_GPTQ(gemm_##bits##_##grouping##_tile, (sglk::gptq_tile<bits, is_indexed>))

#define SGLK_GPTQ_BITS(bits)               \
  SGLK_GPTQ_GROUPING(bits, grouped, false) \
  SGLK_GPTQ_GROUPING(bits, indexed, true)  \
  SGLK_GPTQ(shuffle_##bits, sglk::gptq_shuffle_rows<bits>)

SGLK_GPTQ_BITS(2)
SGLK_GPTQ_BITS(3)
SGLK_GPTQ_BITS(4)
SGLK_GPTQ_BITS(8)
SGLK_GPTQ(reduce, sglk::gptq_reduce_splits)
SGLK_GPTQ(copy, sglk::gptq_copy_words)
