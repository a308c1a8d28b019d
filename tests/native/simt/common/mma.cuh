// What csrc/kernels/common/mma.cuh offers, as PTX defines it, on the GPU of simt.h.
#pragma once

#include "common/types.cuh"
#include "simt.h"

namespace sglk {

inline char* dynamic_shared() { return simt::current->block->shared.data(); }
inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - dynamic_shared());
}

template <class T>
T opaque(T x) {
  return x;
}

template <class T>
T uniform(T x) {
  return static_cast<T>(__shfl_sync(0xffffffffu, static_cast<unsigned>(x), 0));
}

template <int kThreads>
void named_barrier(int id) {
  simt::synchronize(simt::current->block->barriers[id], kThreads);
}

inline void add_release(int* counter, int x) {
  *counter += x;
  ++simt::events;
}
inline int load_acquire(const int* counter) {
  simt::yield();
  return *counter;
}

// Writes at any time until it is waited for: as a race sees it, at both ends.
inline void copy_async(uint32_t target, const void* source) {
  if (reinterpret_cast<uintptr_t>(source) % 16 != 0) simt::fail("cp.async from an unaligned address");
  std::memset(simt::shared(target, 16), 0xee, 16);
  simt::note_write(target, 16);
  simt::current->open.push_back({target, source});
}
inline uint64_t evict_first_policy() { return 1; }
inline uint64_t evict_normal_policy() { return 0; }
inline void copy_async(uint32_t target, const void* source, uint64_t) { copy_async(target, source); }
inline void prefetch_l2(const void*) {}
inline void commit_copies() { simt::current->pending.push_back(std::exchange(simt::current->open, {})); }
template <int kPending>
void wait_copies() {
  auto& pending = simt::current->pending;
  for (; pending.size() > kPending; pending.pop_front()) {
    for (const simt::Copy& copy : pending.front()) {
      simt::note_write(copy.target, 16);
      std::memcpy(simt::shared(copy.target, 16), copy.source, 16);
    }
  }
}

template <int kWords>
void load_shared(uint32_t* words, uint32_t address) {
  simt::note_read(address, 4 * kWords);
  std::memcpy(words, simt::shared(address, 4 * kWords), 4 * kWords);
}
inline uint4 load_shared(uint32_t address) {
  uint4 x;
  simt::note_read(address, 16);
  std::memcpy(&x, simt::shared(address, 16), 16);
  return x;
}
inline uint2 load_shared_pair(uint32_t address) {
  uint2 x;
  simt::note_read(address, 8);
  std::memcpy(&x, simt::shared(address, 8), 8);
  return x;
}
inline uint32_t load_shared_word(uint32_t address) {
  uint32_t x;
  load_shared<1>(&x, address);
  return x;
}
inline void store_shared_word(uint32_t address, uint32_t x) {
  simt::note_write(address, 4);
  std::memcpy(simt::shared(address, 4), &x, 4);
}

// ldmatrix: lane l has row l / 4, columns 2 (l % 4) and the next of each.
inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
  simt::Warp& warp = simt::warp();
  warp.in[simt::lane()][0] = address;
  simt::meet(warp, 32, [&] {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t row = warp.in[8 * i + lane / 4][0];
        simt::note_read(row + lane % 4 * 4, 4, simt::current[lane - simt::lane()]);
        std::memcpy(&warp.out[lane][i], simt::shared(row, 16) + lane % 4 * 4, 4);
      }
    }
  });
  std::copy_n(warp.out[simt::lane()], 4, r);
}

// movmatrix
inline uint32_t transpose(uint32_t x) {
  simt::Warp& warp = simt::warp();
  warp.in[simt::lane()][0] = x;
  simt::meet(warp, 32, [&] {
    const auto element = [&](int row, int column) {
      return warp.in[row * 4 + column / 2][0] >> column % 2 * 16 & 0xffff;
    };
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane % 4 * 2, column = lane / 4;
      warp.out[lane][0] = element(row, column) | element(row + 1, column) << 16;
    }
  });
  return warp.out[simt::lane()][0];
}

// mma.m16n8k16: row i of a is in lanes 4 (i % 8) to + 3, column j of b in lanes 4j to + 3.
template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::Warp& warp = simt::warp();
  auto& mine = warp.in[simt::lane()];
  std::copy_n(a, 4, mine);
  mine[4] = b0, mine[5] = b1;
  simt::meet(warp, 32, [&] {
    const auto value = [&](int lane, int word, int k) {
      return to_float(std::bit_cast<T>(static_cast<uint16_t>(warp.in[lane][word] >> k % 2 * 16)));
    };
    for (int lane = 0; lane < 32; ++lane) {
      for (int e = 0; e < 4; ++e) {
        float sum = 0.0f;
        for (int k = 0; k < 16; ++k) {
          const int from = k % 8 / 2, half = k / 8;
          sum += value(lane / 4 * 4 + from, e / 2 + half * 2, k) *
                 value((lane % 4 * 2 + e % 2) * 4 + from, 4 + half, k);
        }
        warp.out[lane][e] = __float_as_uint(sum);
      }
    }
  });
  for (int e = 0; e < 4; ++e) d[e] += __uint_as_float(warp.out[simt::lane()][e]);
}

}  // namespace sglk
