// Parameters and tile shapes of the Marlin GEMM kernels, shared by host and device.
#pragma once

#ifdef __CUDACC__
#define SGLK_HOST_DEVICE __host__ __device__
#else
#define SGLK_HOST_DEVICE
#endif

namespace sglk::marlin_gemm {

constexpr int kThreads = 256;
constexpr int kTileN = 256;    // columns of a block: four warps of 64
constexpr int kMinGroup = 32;  // rows of the smallest group, which bounds the scales of a stage

// The tile of a block: m rows × kTileN columns, in stages of k rows of weights. k_warps warps share a tile's
// columns and split the rows of a stage. All of it fits 99 KB (sm_86, sm_89, sm_120).
struct Tile {
  int m;
  int k;
  int k_warps;
  int stages;
  int min_blocks;  // of a multiprocessor

  SGLK_HOST_DEVICE constexpr int a_bytes() const { return m * k * 2; }
  SGLK_HOST_DEVICE constexpr int b_bytes(int bits) const { return kTileN * k * bits / 8; }
  SGLK_HOST_DEVICE constexpr int scale_bytes() const { return k / kMinGroup * kTileN * 2; }
  SGLK_HOST_DEVICE constexpr int zero_bytes() const { return k / kMinGroup * kTileN / 2; }
  SGLK_HOST_DEVICE constexpr int stage_bytes(int bits) const {
    return a_bytes() + b_bytes(bits) + scale_bytes() + zero_bytes();
  }
  SGLK_HOST_DEVICE constexpr int shared_bytes(int bits) const { return stages * stage_bytes(bits); }
};

constexpr Tile kTile16{16, 128, 2, 4, 2};
constexpr Tile kTile32{32, 128, 2, 3, 1};
constexpr Tile kTile64{64, 64, 2, 5, 1};
constexpr Tile kTile128{128, 64, 1, 3, 1};
constexpr Tile kTile16Byte{16, 64, 2, 4, 2};  // for weights of 8 bits
constexpr Tile kTile64Byte{64, 64, 2, 3, 1};

// Where a tile lies. Tiles are numbered column by column within bands of eight rows of tiles, so that those
// in flight together share both operands in the L2.
struct TileIndex {
  int m;
  int n;
};

SGLK_HOST_DEVICE inline TileIndex tile_at(int tile, int m_tiles, int n_tiles) {
  constexpr int kBand = 8;
  const int band = tile / (kBand * n_tiles), within = tile - band * kBand * n_tiles;
  const int first = band * kBand;
  const int height = m_tiles - first < kBand ? m_tiles - first : kBand;
  return {first + within % height, within / height};
}

// The work is the list of all tiles' stages, one tile after the other, cut into `blocks` even pieces.
// The first stage of a block, and the block of a stage.
SGLK_HOST_DEVICE inline int first_stage(int block, int blocks, int total) {
  return static_cast<int>(static_cast<long>(block) * total / blocks);
}
SGLK_HOST_DEVICE inline int block_of(int stage, int blocks, int total) {
  return static_cast<int>((static_cast<long>(stage + 1) * blocks + total - 1) / total) - 1;
}

struct Params {
  const void* a;       // [m, k] fp16 or bf16, rows 16-byte aligned; what `gather` reads may be unaligned
  const void* weight;  // Marlin tiles: int32 [k / 16, n · bits / 2]
  const void* scales;  // [groups, n], permuted per 64 columns, or per 32 where groups == 1
  const void* zeros;   // int32 [groups, n / 8], permuted; null: 8
  const int* g_idx;    // [k]: the group of a row; act-order kernels only
  const int* perm;     // [k]: the column of a that goes with a row; `gather` only, null: the same
  const void* bias;    // [n], permuted per 32 columns; may be null
  void* out;           // [m, n]; `gather`: [m, k]
  float* partial;      // [2 · blocks, tile m, kTileN]: pieces of tiles that several blocks share
  long a_stride;       // elements
  long out_stride;     // elements
  int m, n, k;
  int groups;
  int group_size;  // rows; k where groups == 1
  int m_tiles, n_tiles;
  int tile_m;
  int tile_stages;  // of one tile: k / Tile::k
  int blocks;       // of the GEMM, also for `reduce`
};

}  // namespace sglk::marlin_gemm
