// AWQ and GPTQ weights of 4 or 8 bits into Marlin's tiles, for sm_80 and later. Bits are moved, never read as
// numbers.
//
// A tile is 16 rows (k) × 64 columns (n) and belongs to one warp. Lane l = 4·i + q ends up with the values of
// rows r = 2q, r+1, r+8, r+9 and columns 8m + i (m = 0 … 7), below A_m, B_m, C_m, D_m: the B fragments of
// mma.m16n8k16 for eight n8 tiles.
//
//   4 bits  4 words a lane; word j, low nibble first: A_2j C_2j A_2j+1 C_2j+1 B_2j D_2j B_2j+1 D_2j+1
//   8 bits  8 words a lane; word m, low byte first:   A_m C_m B_m D_m
//
// Every word is read once, by whichever lane completes a 32-byte sector, and handed on by shuffles:
//
//   AWQ 4   a row's 8 words to the 8 lanes of equal q, then an 8 × 8 transposition of nibbles among them
//   AWQ 8   a row's 16 words likewise, then 4 × 4 transpositions of bytes
//   GPTQ 4  a word holds 8 rows of a column: 4 × 4 transpositions of bytes among the 4 lanes of equal i
//   GPTQ 8  a word holds 4 rows of a column: two lanes exchange halves
//
// With a permutation (GPTQ only) each lane gathers its values itself.
#include "common/pdl.cuh"
#include "common/types.cuh"
#include "marlin_repack.h"

namespace sglk {

constexpr int kRepackWarps = 4;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Lane {
  int i, q;  // column of eight, pair of rows
};

__device__ __forceinline__ Lane this_lane() {
  const int lane = threadIdx.x % 32;
  return {lane / 4, lane % 4};
}

// Transposes a matrix of 2 × 2 blocks between this lane and lane ^ kDistance: `is_upper` lanes keep their
// upper half, which moves nowhere, and give away the lower one. kSelect*: bytes of (own, other) to keep.
template <int kDistance, unsigned kLower, unsigned kUpper>
__device__ __forceinline__ uint32_t exchange_bytes(uint32_t own, bool is_upper) {
  const uint32_t other = __shfl_xor_sync(kAllLanes, own, kDistance);
  return __byte_perm(own, other, is_upper ? kUpper : kLower);
}

// Byte s of lane t ⇄ byte t of lane s, among four lanes kDistance apart; `index` is this lane's.
template <int kDistance>
__device__ __forceinline__ uint32_t transpose_bytes(uint32_t word, int index) {
  word = exchange_bytes<2 * kDistance, 0x5410, 0x3276>(word, index & 2);
  return exchange_bytes<kDistance, 0x6240, 0x3715>(word, index & 1);
}

// Nibble s of lane t ⇄ nibble t of lane s, among the eight lanes of equal q; `index` is this lane's.
__device__ __forceinline__ uint32_t transpose_nibbles(uint32_t word, int index) {
  word = exchange_bytes<16, 0x5410, 0x3276>(word, index & 4);
  word = exchange_bytes<8, 0x6240, 0x3715>(word, index & 2);
  const uint32_t other = __shfl_xor_sync(kAllLanes, word, 4);
  return index & 1 ? (word & 0xf0f0f0f0u) | ((other >> 4) & 0x0f0f0f0fu)
                   : (word & 0x0f0f0f0fu) | ((other << 4) & 0xf0f0f0f0u);
}

// Bytes (a, b, c, d)[s] of four words into word s.
__device__ __forceinline__ uint4 transpose_words(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t ab_low = __byte_perm(a, b, 0x5140), ab_high = __byte_perm(a, b, 0x7362);
  const uint32_t cd_low = __byte_perm(c, d, 0x5140), cd_high = __byte_perm(c, d, 0x7362);
  return {__byte_perm(ab_low, cd_low, 0x5410), __byte_perm(ab_low, cd_low, 0x7632),
          __byte_perm(ab_high, cd_high, 0x5410), __byte_perm(ab_high, cd_high, 0x7632)};
}

// A layout says what a lane loads of a tile, all of it before any is used, and what it makes of that.
template <int kBits>
struct Awq;

template <>
struct Awq<4> {
  static constexpr int kWords = 4, kTiles = 4;  // words of a lane and a tile; tiles of a warp

  // Word i of rows 2q, 2q+1, 2q+8, 2q+9.
  static __device__ __forceinline__ void load(uint32_t (&word)[kWords], const MarlinRepackParams& p,
                                              int64_t k, int block) {
    const auto [i, q] = this_lane();
    const int64_t stride = int64_t{p.column_blocks} * 8;
    const uint32_t* const first = p.input + (k + 2 * q) * stride + int64_t{block} * 8 + i;
    word[0] = first[0];
    word[1] = first[stride];
    word[2] = first[8 * stride];
    word[3] = first[9 * stride];
  }
  // Nibble t of an AWQ word is column 0 2 4 6 1 3 5 7; nibble t of a transposed one is column 8t + i.
  static __device__ __forceinline__ void pack(uint4* out, uint32_t (&word)[kWords]) {
    const auto [i, q] = this_lane();
#pragma unroll
    for (uint32_t& w : word) {
      const uint32_t even = __byte_perm(w, 0, 0x4140), odd = __byte_perm(w, 0, 0x4342);
      const uint32_t spread_even = (even | (even << 4)) & 0x0f0f0f0fu;
      const uint32_t spread_odd = (odd | (odd << 4)) & 0x0f0f0f0fu;
      w = transpose_nibbles(spread_even | (spread_odd << 4), i);
    }
    const uint32_t a = word[0], b = word[1], c = word[2], d = word[3];
    out[0] = transpose_words(
        (a & 0x0f0f0f0fu) | ((c & 0x0f0f0f0fu) << 4), ((a >> 4) & 0x0f0f0f0fu) | (c & 0xf0f0f0f0u),
        (b & 0x0f0f0f0fu) | ((d & 0x0f0f0f0fu) << 4), ((b >> 4) & 0x0f0f0f0fu) | (d & 0xf0f0f0f0u));
  }
};

template <>
struct Awq<8> {
  static constexpr int kWords = 8, kTiles = 2;

  // A row has 16 words, column 4w + o of word w. Of those with w % 2 = i / 4, numbers i % 4 and i % 4 + 4.
  static __device__ __forceinline__ void load(uint32_t (&word)[kWords], const MarlinRepackParams& p,
                                              int64_t k, int block) {
    const auto [i, q] = this_lane();
    const int64_t stride = int64_t{p.column_blocks} * 16;
    const uint32_t* const first = p.input + (k + 2 * q) * stride + int64_t{block} * 16 + 2 * (i % 4) + i / 4;
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      const int64_t offset = (row / 2 * 8 + row % 2) * stride;
      word[2 * row] = first[offset];
      word[2 * row + 1] = first[offset + 8];
    }
  }
  static __device__ __forceinline__ void pack(uint4* out, uint32_t (&word)[kWords]) {
    const auto [i, q] = this_lane();
#pragma unroll
    for (uint32_t& w : word) w = transpose_bytes<4>(__byte_perm(w, 0, 0x3120), i % 4);
    out[0] = transpose_words(word[0], word[4], word[2], word[6]);
    out[1] = transpose_words(word[1], word[5], word[3], word[7]);
  }
};

template <int kBits>
struct Gptq;

template <>
struct Gptq<4> {
  static constexpr int kWords = 4, kTiles = 4;

  // Columns 8q + i and 8(q + 4) + i of both rows of words.
  static __device__ __forceinline__ void load(uint32_t (&word)[kWords], const MarlinRepackParams& p,
                                              int64_t k, int block) {
    const auto [i, q] = this_lane();
    const int64_t stride = int64_t{p.column_blocks} * 64;
    const uint32_t* const first = p.input + k / 8 * stride + int64_t{block} * 64 + 8 * q + i;
    word[0] = first[0];
    word[1] = first[stride];
    word[2] = first[32];
    word[3] = first[stride + 32];
  }
  static __device__ __forceinline__ void pack(uint4* out, uint32_t (&word)[kWords]) {
    const auto [i, q] = this_lane();
    uint32_t ac[2], bd[2];
#pragma unroll
    for (uint32_t& w : word) w = transpose_bytes<1>(w, q);  // byte s: column 8s + i, rows r and r+1
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t low = word[2 * half], high = word[2 * half + 1];
      ac[half] = (low & 0x0f0f0f0fu) | ((high & 0x0f0f0f0fu) << 4);
      bd[half] = ((low >> 4) & 0x0f0f0f0fu) | (high & 0xf0f0f0f0u);
    }
    out[0] = {__byte_perm(ac[0], bd[0], 0x5410), __byte_perm(ac[0], bd[0], 0x7632),
              __byte_perm(ac[1], bd[1], 0x5410), __byte_perm(ac[1], bd[1], 0x7632)};
  }
};

template <>
struct Gptq<8> {
  static constexpr int kWords = 8, kTiles = 2;

  // Columns 8(2s + q%2) + i of rows q/2 and q/2 + 2 of words.
  static __device__ __forceinline__ void load(uint32_t (&word)[kWords], const MarlinRepackParams& p,
                                              int64_t k, int block) {
    const auto [i, q] = this_lane();
    const int64_t stride = int64_t{p.column_blocks} * 64;
    const uint32_t* const first = p.input + (k / 4 + q / 2) * stride + int64_t{block} * 64 + 8 * (q % 2) + i;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      word[2 * s] = first[16 * s];
      word[2 * s + 1] = first[2 * stride + 16 * s];
    }
  }
  static __device__ __forceinline__ void pack(uint4* out, uint32_t (&word)[kWords]) {
    const auto [i, q] = this_lane();
#pragma unroll
    for (uint32_t& w : word) w = exchange_bytes<1, 0x5410, 0x3276>(w, q & 1);
#pragma unroll
    for (int s = 0; s < 2; ++s) {  // halves of a word: columns 8(2s) + i and 8(2s+1) + i
      const uint32_t* const w = word + 4 * s;
      out[s] = {__byte_perm(w[0], w[1], 0x5140), __byte_perm(w[0], w[1], 0x7362),
                __byte_perm(w[2], w[3], 0x5140), __byte_perm(w[2], w[3], 0x7362)};
    }
  }
};

// Rows in any order. One that does not exist reads as zeros.
template <int kBits>
struct PermutedGptq {
  static constexpr int kWords = kBits, kTiles = 1;
  static constexpr int kPerWord = 32 / kBits;

  static __device__ __forceinline__ void load(uint32_t (&word)[kWords], const MarlinRepackParams& p,
                                              int64_t k, int block) {
    const auto [i, q] = this_lane();
    const int64_t stride = int64_t{p.column_blocks} * 64;
#pragma unroll
    for (uint32_t& w : word) w = 0;
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      const int source = p.perm[k + 2 * q + row / 2 * 8 + row % 2];
      const bool is_row = source >= 0 && source < p.size_k;
      const int safe = is_row ? source : 0;
      const uint32_t* const first = p.input + int64_t{safe / kPerWord} * stride + int64_t{block} * 64 + i;
      const uint32_t mask = is_row ? (1u << kBits) - 1 : 0;
      const int field = row / 2 + row % 2 * (kPerWord / 2);  // rows r, r+8, r+1, r+9 from the low end up
#pragma unroll
      for (int m = 0; m < 8; ++m) {
        const uint32_t value = (first[8 * m] >> (safe % kPerWord * kBits)) & mask;
        if constexpr (kBits == 4) {
          word[m / 2] |= value << (4 * (field + m % 2 * 2));
        } else {
          word[m] |= value << (8 * field);
        }
      }
    }
  }
  static __device__ __forceinline__ void pack(uint4* out, uint32_t (&word)[kWords]) {
#pragma unroll
    for (int v = 0; v < kWords / 4; ++v)
      out[v] = {word[4 * v], word[4 * v + 1], word[4 * v + 2], word[4 * v + 3]};
  }
};

template <class Layout>
__device__ __forceinline__ void marlin_repack(const MarlinRepackParams& p) {
  constexpr int kWords = Layout::kWords, kTiles = Layout::kTiles;
  const int64_t tile_row = blockIdx.x / static_cast<unsigned>(p.chunks);
  const int chunk = blockIdx.x % static_cast<unsigned>(p.chunks);
  const int first = (chunk * kRepackWarps + threadIdx.x / 32) * kTiles;
  wait_for_predecessor();
  if (first >= p.column_blocks) return;  // a whole warp: the shuffles miss nobody

  uint32_t word[kTiles][kWords];
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
    Layout::load(word[t], p, 16 * tile_row, min(first + t, p.column_blocks - 1));
  uint4* const out = reinterpret_cast<uint4*>(p.output) +
                     ((tile_row * p.column_blocks + first) * 32 + threadIdx.x % 32) * (kWords / 4);
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    uint4 packed[kWords / 4];
    Layout::pack(packed, word[t]);
    if (first + t < p.column_blocks) {
#pragma unroll
      for (int v = 0; v < kWords / 4; ++v) out[t * 32 * (kWords / 4) + v] = packed[v];
    }
  }
  __threadfence();  // a GEMM that follows reads them without waiting (pdl.cuh)
}

}  // namespace sglk

#define SGLK_MARLIN_REPACK(name, layout)                                         \
  extern "C" __global__ void __launch_bounds__(32 * sglk::kRepackWarps)          \
      marlin_repack_##name(const __grid_constant__ sglk::MarlinRepackParams p) { \
    sglk::marlin_repack<sglk::layout>(p);                                        \
  }

SGLK_MARLIN_REPACK(awq_4, Awq<4>)
SGLK_MARLIN_REPACK(awq_8, Awq<8>)
SGLK_MARLIN_REPACK(gptq_4, Gptq<4>)
SGLK_MARLIN_REPACK(gptq_8, Gptq<8>)
SGLK_MARLIN_REPACK(gptq_permuted_4, PermutedGptq<4>)
SGLK_MARLIN_REPACK(gptq_permuted_8, PermutedGptq<8>)
