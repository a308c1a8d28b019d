// What csrc/kernels/common/wgmma.cuh offers, as PTX defines it, on the GPU of simt.h.
#pragma once

#include "common/types.cuh"
#include "simt.h"

namespace sglk {

// Orders nothing.
inline bool elect_lane() {
  simt::meet(simt::warp(), 32, [] {});
  return simt::lane() == 0;
}

// --- mbarrier ---

inline simt::PhaseBarrier& phase_barrier(uint32_t address) {
  const auto found = simt::current->block->phases.find(address);
  if (found == simt::current->block->phases.end()) simt::fail("no mbarrier here");
  return found->second;
}
inline void complete_phase(simt::PhaseBarrier& barrier) {
  if (barrier.left > 0 || barrier.bytes > 0) return;
  barrier.left = barrier.arrivals;
  barrier.parity ^= 1;
  barrier.completed = barrier.arriving;
}
inline void init_barrier(uint32_t address, int arrivals) {
  simt::shared(address, 8);
  simt::current->block->phases[address] = {.arrivals = arrivals, .left = arrivals};
}
inline void fence_barriers() {}
inline void arrive_expect(uint32_t address, int bytes) {
  simt::PhaseBarrier& barrier = phase_barrier(address);
  ++simt::events;
  barrier.bytes += bytes;
  simt::release(barrier.arriving);
  if (--barrier.left < 0) simt::fail("more arrivals than the mbarrier expects");
  complete_phase(barrier);
}
inline void arrive(uint32_t address) { arrive_expect(address, 0); }
// Makes the copies once nobody else is to arrive.
inline void wait_barrier(uint32_t address, uint32_t parity) {
  simt::PhaseBarrier& barrier = phase_barrier(address);
  while (barrier.parity == parity) {
    simt::yield();
    if (barrier.parity != parity || barrier.left > 0) continue;
    for (const auto& copy : std::exchange(barrier.copies, {})) {
      copy();
      ++simt::events;
    }
    complete_phase(barrier);
  }
  simt::acquire(barrier.completed);
}

// --- copies ---

// A copy's write: it happens after what its thread did before, and before what waits for its barrier.
inline void note_copy(uint32_t target, std::size_t bytes, simt::PhaseBarrier& barrier) {
  simt::note_write(target, bytes);
  const unsigned thread = simt::current->index, time = simt::current->clock[thread];
  barrier.copies.emplace_back(
      [&barrier, thread, time] { barrier.arriving[thread] = std::max(barrier.arriving[thread], time); });
}

// The tensor map of a matrix.
struct BoxMap {
  const void* data;
  long row_bytes, rows, columns;
  int box_rows, box_columns, element_bytes;
  bool is_swizzled;
};

// Where a byte lies under the swizzle of 128 bytes.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// Elements beyond the matrix are zero.
inline void copy_box(uint32_t target, const void* map, int x, int y, uint32_t barrier) {
  const BoxMap& box = *static_cast<const BoxMap*>(map);
  if (target % (box.is_swizzled ? 1024 : 128) != 0) simt::fail("a box at an unaligned address");
  simt::PhaseBarrier& phase = phase_barrier(barrier);
  const int row_bytes = box.box_columns * box.element_bytes, bytes = box.box_rows * row_bytes;
  note_copy(target, static_cast<std::size_t>(bytes), phase);
  for (int row = 0; row < box.box_rows; ++row) {
    for (int byte = 0; byte < row_bytes; byte += 16) {
      const uint32_t address = target + static_cast<uint32_t>(row * row_bytes + byte);
      char* const to = simt::shared(box.is_swizzled ? swizzled(address) : address, 16);
      const bool is_within = y + row < box.rows && x + byte / box.element_bytes < box.columns;
      const char* const from =
          static_cast<const char*>(box.data) + (y + row) * box.row_bytes + x * box.element_bytes + byte;
      std::memset(to, 0xee, 16);
      phase.copies.emplace_back([=] {
        if (is_within) {
          std::memcpy(to, from, 16);
        } else {
          std::memset(to, 0, 16);
        }
      });
    }
  }
  phase.copies.emplace_back([&phase, bytes] { phase.bytes -= bytes; });
}
inline void copy_box(uint32_t target, const void* map, int x, int y, uint32_t barrier, uint64_t) {
  copy_box(target, map, x, y, barrier);
}
inline void prefetch_map(const void*) {}

// --- wgmma ---

template <int>
void give_up_registers() {}
template <int>
void take_registers() {}

inline void open_products() {}
inline void commit_products() {
  simt::current->pending_products.push_back(std::exchange(simt::current->open_products, {}));
}

// The address, in 16 bytes.
inline uint64_t operand_descriptor(uint32_t address) { return address / 16; }

// Of the threads of a warp, whose registers are read where they lie. Any of them that has waited is after it;
// the first, which elect_lane elects, reads for all.
template <class T, int kN>
void multiply(const simt::Thread* warp, std::size_t index) {
  const auto product = [&](int lane) -> const simt::Product& {
    return warp[lane].pending_products.front()[index];
  };
  float b[16][kN];
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < kN; ++n) {
      const auto address = static_cast<uint32_t>(product(0).b * 16) + static_cast<uint32_t>(n * 128 + k * 2);
      if (k % 8 == 0) simt::note_read(swizzled(address), 16, warp[0]);
      T x;
      std::memcpy(&x, simt::shared(swizzled(address), 2), 2);
      b[k][n] = to_float(x);
    }
  }
  for (int row = 0; row < 16; ++row) {
    float a[16];
    for (int k = 0; k < 16; ++k) {
      const uint32_t word = product(row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2];
      a[k] = to_float(std::bit_cast<T>(static_cast<uint16_t>(word >> k % 2 * 16)));
    }
    for (int n = 0; n < kN; ++n) {
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) sum += a[k] * b[k][n];
      const simt::Product& to = product(row % 8 * 4 + n % 8 / 2);
      float& d = to.d[n / 8 * 4 + row / 8 * 2 + n % 2];
      d = to.adds ? d + sum : sum;
    }
  }
}

template <class T, int kN>
void multiply_async(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool adds) {
  simt::current->open_products.push_back({d, a, b, adds, multiply<T, kN>});
}

// Makes the products as late as may be: weights and tokens must be there until then.
template <int kPending>
void wait_products() {
  simt::meet(simt::warp(), 32, [] {
    simt::Thread* const warp = simt::current - simt::lane();
    while (warp->pending_products.size() > kPending) {
      const std::vector<simt::Product>& products = warp->pending_products.front();
      for (std::size_t i = 0; i < products.size(); ++i) products[i].multiply(warp, i);
      for (int lane = 0; lane < 32; ++lane) warp[lane].pending_products.pop_front();
    }
  });
}

}  // namespace sglk
