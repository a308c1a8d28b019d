// Parameters of the repacking kernels, shared by host and device.
#pragma once

namespace sglk {

struct MarlinRepackParams {
  unsigned* output;       // [size_k / 16, size_n · bits / 2] Marlin tiles, aligned to 16 bytes
  const unsigned* input;  // AWQ: [size_k, size_n · bits / 32]; GPTQ: [size_k · bits / 32, size_n]
  const int* perm;        // [size_k] packed row k is original row perm[k]; null: the identity
  long size_k;            // of all experts together, whose tiles follow each other
  int column_blocks;      // size_n / 64
  int chunks;             // thread blocks that share a row of tiles
};

}  // namespace sglk
