// A GPU of fibers, to run kernels of csrc on the host: every thread of a grid is a fiber, all blocks are
// resident, and warps meet where they do something together. It knows what the kernels use of CUDA's
// language; common/mma.cuh and common/wgmma.cuh beside it stand for theirs.
//
// Strict where a GPU is lucky: from when a copy to shared memory begins its target is 0xee, and the copy is
// made as late as may be, so that a missing wait shows, and a copy to what is still read; a block that waits
// for another runs before it; shared memory begins as 0xee. An address beyond it or unaligned ends the
// process, and so does a wait of all threads for each other, and a race: two accesses to shared memory, one
// of them a write, of which neither happens before the other (vector clocks; Flanagan and Freund, FastTrack,
// 2009). Lanes of a warp are ordered by __syncwarp alone, as in PTX. Not seen: accesses through plain
// pointers, and global memory.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};
using std::max;
using std::min;

namespace simt {

// Of each thread of a block, up to which of its times something happens after it.
using VectorClock = std::vector<unsigned>;

inline void join(VectorClock& clock, const VectorClock& other) {
  clock.resize(std::max(clock.size(), other.size()));
  for (std::size_t i = 0; i < other.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

// Where threads wait for each other.
struct Meeting {
  int arrived = 0;
  long round = 0;
  VectorClock arriving, met;  // of those that synchronize
};

struct Warp : Meeting {
  std::uint32_t in[32][6], out[32][4];  // of what its lanes do together
};

struct Copy {
  std::uint32_t target;
  const void* source;
};

// An mbarrier. What it waits for in the phase at hand: arrivals, and bytes that copies bring.
struct PhaseBarrier {
  int arrivals;
  int left;
  long bytes = 0;
  unsigned parity = 0;
  std::vector<std::function<void()>> copies = {};
  VectorClock arriving = {}, completed = {};
};

// Who accessed a word of shared memory, and when; time 0 is before all.
struct Access {
  unsigned thread, time;
};
struct Word {
  Access write = {};          // the last
  std::vector<Access> reads;  // since then
};

struct Block {
  int index;
  std::vector<char> shared;
  std::vector<Word> words;  // of it
  std::vector<Warp> warps;
  Meeting barriers[16];
  std::map<std::uint32_t, PhaseBarrier> phases;  // by address
};

struct Thread;

// A thread's share of a wgmma. Its warp, of which 16 rows of a are, makes it.
struct Product {
  float* d;
  const std::uint32_t* a;
  std::uint64_t b;
  bool adds;
  void (*multiply)(const Thread* warp, std::size_t index);
};

struct Thread {
  unsigned index;
  Block* block;
  ucontext_t context;
  std::vector<char> stack;
  bool is_done = false;
  VectorClock clock;                      // with its own time
  std::vector<Copy> open;                 // cp.async: not committed
  std::deque<std::vector<Copy>> pending;  // committed, not waited for
  std::vector<Product> open_products;     // wgmma: not committed
  std::deque<std::vector<Product>> pending_products;
};

struct Index {
  unsigned x, y;
};

inline Thread* current;
inline ucontext_t scheduler;
inline Index grid;
inline const std::function<void()>* body;
inline long events;  // what may end a wait

inline void yield() { swapcontext(&current->context, &scheduler); }

[[noreturn]] inline void fail(const char* what) {
  std::printf("block %d, thread %u: %s\n", current->block->index, current->index, what);
  std::exit(3);
}

// Returns once `count` threads have come; the last of them acts before.
template <class Act>
void meet(Meeting& meeting, int count, Act act) {
  const long round = meeting.round;
  if (++meeting.arrived == count) {
    act();
    meeting.arrived = 0;
    ++meeting.round;
    ++events;
  }
  while (meeting.round == round) yield();
}

// What a thread did so far happens before what others do that join the clock.
inline void release(VectorClock& clock) {
  join(clock, current->clock);
  ++current->clock[current->index];
}
inline void acquire(const VectorClock& clock) { join(current->clock, clock); }

// Meets, and what all did before happens before what they do after.
inline void synchronize(Meeting& meeting, int count) {
  release(meeting.arriving);
  meet(meeting, count, [&] { meeting.met = meeting.arriving; });
  acquire(meeting.met);
}

inline Warp& warp() { return current->block->warps[current->index / 32]; }
inline int lane() { return static_cast<int>(current->index % 32); }

inline char* shared(std::uint32_t address, std::size_t bytes) {
  std::vector<char>& memory = current->block->shared;
  if (address % bytes != 0 || address + bytes > memory.size()) fail("bad address in shared memory");
  return memory.data() + address;
}

inline void check_order(const Access& other, const Thread& thread, const char* what, std::size_t word) {
  if (other.time <= thread.clock[other.thread]) return;
  std::printf("block %d, thread %u: %s of thread %u, at %zu: a race\n", thread.block->index, thread.index,
              what, other.thread, word * 4);
  std::exit(3);
}

// A thread's accesses: at once to a multiple of 4 bytes.
inline void note_read(std::uint32_t address, std::size_t bytes, const Thread& thread = *current) {
  for (std::size_t i = address / 4; i < (address + bytes) / 4; ++i) {
    Word& word = thread.block->words[i];
    check_order(word.write, thread, "reads beside a write", i);
    const auto own = std::find_if(word.reads.begin(), word.reads.end(),
                                  [&](const Access& read) { return read.thread == thread.index; });
    const Access read{thread.index, thread.clock[thread.index]};
    if (own == word.reads.end()) {
      word.reads.push_back(read);
    } else {
      *own = read;
    }
  }
}
inline void note_write(std::uint32_t address, std::size_t bytes) {
  for (std::size_t i = address / 4; i < (address + bytes) / 4; ++i) {
    Word& word = current->block->words[i];
    check_order(word.write, *current, "writes beside a write", i);
    for (const Access& read : word.reads) check_order(read, *current, "writes beside a read", i);
    word.write = {current->index, current->clock[current->index]};
    word.reads.clear();
  }
}

inline void run_body() {
  (*body)();
  current->is_done = true;
  ++events;
}

// Runs a grid until every thread has returned.
inline void run(int blocks, int threads, int shared_bytes, const std::function<void()>& kernel) {
  body = &kernel;
  grid = {static_cast<unsigned>(blocks), 1};
  std::vector<Block> all(static_cast<std::size_t>(blocks));
  std::vector<Thread> fibers(all.size() * static_cast<std::size_t>(threads));
  for (std::size_t i = 0; i < fibers.size(); ++i) {
    Thread& thread = fibers[i];
    thread.index = static_cast<unsigned>(i % static_cast<std::size_t>(threads));
    thread.block = &all[i / static_cast<std::size_t>(threads)];
    if (thread.index == 0) {
      thread.block->index = static_cast<int>(thread.block - all.data());
      thread.block->shared.assign(static_cast<std::size_t>(shared_bytes), '\xee');
      thread.block->words.resize(thread.block->shared.size() / 4);
      thread.block->warps.resize(static_cast<std::size_t>(threads) / 32);
    }
    thread.clock.resize(static_cast<std::size_t>(threads));
    thread.clock[thread.index] = 1;
    thread.stack.resize(48 << 10);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = &scheduler;
    makecontext(&thread.context, run_body, 0);
  }
  long seen = 0;
  int idle_rounds = 0;
  for (bool is_running = true; is_running;) {
    if (std::exchange(seen, events) != events) idle_rounds = 0;
    if (++idle_rounds > 100) {
      std::printf("every thread waits\n");
      std::exit(3);
    }
    is_running = false;
    for (int block = blocks - 1; block >= 0; --block) {  // as they lie in the grid, waiters come last
      for (int i = 0; i < threads; ++i) {
        Thread& thread = fibers[static_cast<std::size_t>(block * threads + i)];
        if (thread.is_done) continue;
        is_running = true;
        current = &thread;
        swapcontext(&scheduler, &thread.context);
      }
    }
  }
}

}  // namespace simt

#define threadIdx (simt::Index{simt::current->index, 0})
#define blockIdx (simt::Index{static_cast<unsigned>(simt::current->block->index), 0})
#define gridDim (simt::grid)

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
  unsigned r = 0;
  for (unsigned i = 0; i < 4; ++i) {
    r |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return r;
}
inline float4 __ldcg(const float4* from) { return *from; }
inline void __stcg(float4* to, const float4& x) { *to = x; }
inline void __syncwarp() { simt::synchronize(simt::warp(), 32); }
inline void __syncthreads() {
  simt::Block& block = *simt::current->block;
  simt::synchronize(block.barriers[0], static_cast<int>(block.warps.size()) * 32);
}
inline unsigned __shfl_sync(unsigned lanes, unsigned x, int source) {
  simt::Warp& warp = simt::warp();
  auto& mine = warp.in[simt::lane()];
  mine[0] = x, mine[1] = static_cast<unsigned>(source);
  simt::meet(warp, std::popcount(lanes), [&] {
    for (int lane = 0; lane < 32; ++lane) warp.out[lane][0] = warp.in[warp.in[lane][1] % 32][0];
  });
  return warp.out[simt::lane()][0];
}
inline unsigned __shfl_xor_sync(unsigned lanes, unsigned x, int distance) {
  simt::Warp& warp = simt::warp();
  warp.in[simt::lane()][0] = x;
  simt::meet(warp, std::popcount(lanes), [&] {
    for (int lane = 0; lane < 32; ++lane) warp.out[lane][0] = warp.in[lane ^ distance][0];
  });
  return warp.out[simt::lane()][0];
}
