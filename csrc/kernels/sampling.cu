// Top-k, top-p and min-p filters and samplers on fp32 rows, sm_80 and later, without sorting.
//
//   top-k keeps x iff fewer than k entries are above it; top-p iff the mass above it is below p;
//   min-p iff x >= min_p · max. Ties are kept together: what is kept is {x : key(x) >= threshold}.
//
// A key is an unsigned integer in the order of the values. The threshold is found digit by digit (11, 11 and
// 10 bits), in steps that are launches; `chunks` blocks share a row, a warp owns a segment of it:
//
//   clear      zeroes the rows' states and histograms
//   histogram  counts and masses by first digit; a row's last block finds the digit of the threshold
//   maximum    in its place for min-p: the largest key
//   select     gathers the keys with that digit; a row's last block finds the threshold among them, and, for
//              a sampler, draws the token by inverse CDF in index order
//   apply      renormalizes or masks
//
// All sums that blocks share are integers, so no result depends on their order. Masses that decide about
// top-p are exact sums of significands per exponent, added in fp64 in a fixed order. The mass of a token that
// is drawn is its probability in fixed point with fraction_bits below the last bit of the row's maximum. NaN,
// zero and negative probabilities have key 0 and are never drawn while another is there.
#include "common/pdl.cuh"
#include "common/vector.cuh"
#include "sampling.h"

namespace sglk {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 2048;
constexpr int kBinsPerThread = kBins / kThreads;
constexpr int kStage = 128;         // candidates that a warp gathers before it reserves room for them
constexpr int kMaxSegments = 1024;  // of a row
constexpr int kSegmentsPerThread = kMaxSegments / kThreads;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- keys and masses ----

__device__ __forceinline__ unsigned key_of(float x, bool is_logits) {
  const unsigned bits = __float_as_uint(x);
  if (!is_logits) return x > 0.0f ? bits << 1 : 0;
  if (x == 0.0f) return 0x80000000u;  // of either sign
  return x == x ? bits ^ (static_cast<unsigned>(static_cast<int>(bits) >> 31) | 0x80000000u) : 0;
}

// Of a probability's key: the significand with its leading bit and the exponent, of subnormals too.
__device__ __forceinline__ unsigned significand(unsigned key) {
  return (key >> 1 & 0x7fffffu) | (key >> 24 != 0 ? 0x800000u : 0);
}
__device__ __forceinline__ int exponent(unsigned key) { return max(key >> 24, 1u); }

__device__ __forceinline__ uint64_t fixed_mass(unsigned key, int max_exponent, int fraction_bits) {
  return (uint64_t{significand(key)} << fraction_bits) >> min(max_exponent - exponent(key), 63);
}

// 2^power, of the normal doubles.
__device__ __forceinline__ double power_of_two(int power) {
  return __longlong_as_double(static_cast<long long>(power + 1023) << 52);
}

// ---- a row and a warp's part of it ----

struct Place {
  int row, chunk, segment;  // segment: of the row, this warp's
  int source;               // row of the input
  const float* input;
  int begin, end;  // elements of the segment
};

__device__ __forceinline__ Place place(const SamplingParams& p) {
  Place at;
  at.row = blockIdx.x / p.chunks;
  at.chunk = blockIdx.x % p.chunks;
  at.segment = at.chunk * kWarps + threadIdx.x / 32;
  at.source = p.indices != nullptr ? p.indices[at.row] : at.row;
  const bool is_row = at.source >= 0 && at.source < p.input_rows;
  if (!is_row) at.source = 0;
  at.input = p.input + at.source * p.input_stride;
  const int64_t begin = int64_t{at.segment} * p.segment;
  at.begin = min(begin, int64_t{p.vocabulary});
  at.end = min(begin + p.segment, int64_t{p.vocabulary});
  return at;
}

// Calls visit(value, index) for every element of the segment; a place behind its end gives NaN, so that all
// lanes make each call together.
template <bool kIsVector, class Visit>
__device__ __forceinline__ void visit_segment(const Place& at, Visit visit) {
  constexpr int kSize = kIsVector ? 4 : 1, kUnroll = kIsVector ? 4 : 8;
  const float nan = __uint_as_float(0x7fffffffu);
  for (int64_t start = at.begin + threadIdx.x % 32 * kSize; start - threadIdx.x % 32 * kSize < at.end;
       start += 32 * kSize * kUnroll) {
    Vector<float, kSize> values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = start + u * 32 * kSize;
#pragma unroll
      for (int j = 0; j < kSize; ++j) values[u][j] = nan;
      if (i < at.end) values[u] = load<float, kSize>(at.input + i);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) visit(values[u][j], start + u * 32 * kSize + j);
    }
  }
}

// Whether this block is the last of the row's to arrive; then it sees what all of them have written.
__device__ __forceinline__ bool is_last_block(unsigned* arrived, int blocks) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(arrived, 1u) == static_cast<unsigned>(blocks) - 1;
  __syncthreads();
  __threadfence();
  return is_last;
}

__device__ __forceinline__ int top_k_of(const SamplingParams& p, const Place& at) {
  return max(p.top_k != nullptr ? p.top_k[at.source] : p.top_k_value, 1);
}
__device__ __forceinline__ float limit_of(const SamplingParams& p, const Place& at) {
  return p.limit != nullptr ? p.limit[at.source] : p.limit_value;
}

// ---- scans over the block, of a fixed shape ----

template <class T>
__device__ __forceinline__ T scan_warp(T value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const T below = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += below;
  }
  return value;
}

// The sum of all threads before this one; `total` is that of all.
template <class T>
__device__ __forceinline__ T scan_block(T value, T (&partial)[kWarps], T& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const T inclusive = scan_warp(value);
  __syncthreads();  // the buffer's earlier readers
  if (lane == 31) partial[warp] = inclusive;
  __syncthreads();
  const T warps = scan_warp(lane < kWarps ? partial[lane] : T(0));
  total = __shfl_sync(kAllLanes, warps, kWarps - 1);
  const T before = __shfl_sync(kAllLanes, warps, max(warp - 1, 0));
  T exclusive = __shfl_up_sync(kAllLanes, inclusive, 1);
  if (lane == 0) exclusive = T(0);
  return warp > 0 ? before + exclusive : exclusive;
}

// ---- one digit of the threshold ----

struct Histogram {
  unsigned count[kBins];
  unsigned mass_low[kBins], mass_high[kBins];  // halves of a sum of significands

  __device__ __forceinline__ void clear() {
    for (int i = threadIdx.x; i < kBins; i += kThreads) count[i] = mass_low[i] = mass_high[i] = 0;
    __syncthreads();
  }
  __device__ __forceinline__ void add(int bin, unsigned key, bool has_count, bool has_mass) {
    if (has_count) atomicAdd(&count[bin], 1u);
    if (has_mass) {
      const unsigned value = significand(key);
      if (atomicAdd(&mass_low[bin], value) > ~value) atomicAdd(&mass_high[bin], 1u);  // a carry
    }
  }
  __device__ __forceinline__ uint64_t mass(int bin) const {
    return uint64_t{mass_high[bin]} << 32 | mass_low[bin];
  }
};

// What limits a row; k and p that keep everything are none.
struct Limits {
  bool has_k, has_p;
  unsigned k;
  double p;
};

struct Digit {
  int bin, top_bin;  // of the threshold, of the largest key; -1: there is no key
  unsigned count_above;
  double mass_above;  // of the bins above `bin`, and what was above at the start
};

struct ScanBuffers {
  unsigned count[kWarps];
  double mass[kWarps];
  uint64_t sum[kWarps];
  int bin, top_bin;
  unsigned count_above;
  double mass_above;
};

// The lowest bin that holds a key that is kept: every bin above it holds none but such keys. kIsFirst: the
// first digit, which begins with the exponent; else all keys have the exponent given.
template <bool kIsFirst>
__device__ __forceinline__ Digit find_digit(const Histogram& histogram, const Limits& limits,
                                            int common_exponent, unsigned count_above, double mass_above,
                                            ScanBuffers& buffers) {
  unsigned counts[kBinsPerThread];
  double masses[kBinsPerThread];
  unsigned count = 0, total_count;
  double mass = 0.0, total_mass;
  const int first = kBins - 1 - threadIdx.x * kBinsPerThread;
  if (threadIdx.x == 0) buffers.bin = kBins, buffers.top_bin = -1;
#pragma unroll
  for (int j = 0; j < kBinsPerThread; ++j) {
    const int bin = first - j;
    counts[j] = histogram.count[bin];
    const int scale = (kIsFirst ? max(bin >> 3, 1) : common_exponent) - 150;
    masses[j] = static_cast<double>(histogram.mass(bin)) * power_of_two(scale);
    count += counts[j];
    mass += masses[j];
  }
  count = scan_block(count, buffers.count, total_count) + count_above;
  mass = scan_block(mass, buffers.mass, total_mass) + mass_above;
  int found = kBins;
  unsigned found_count = 0;
  double found_mass = 0.0;
#pragma unroll
  for (int j = 0; j < kBinsPerThread; ++j) {
    const int bin = first - j;
    if (counts[j] != 0 || masses[j] > 0.0) {
      atomicMax(&buffers.top_bin, bin);
      const bool is_kept = (!limits.has_k || count < limits.k) &&
                           (!limits.has_p || mass < limits.p || mass == 0.0);  // the largest always
      if (is_kept) found = bin, found_count = count, found_mass = mass;
    }
    count += counts[j];
    mass += masses[j];
  }
  if (found < kBins) atomicMin(&buffers.bin, found);
  __syncthreads();
  if (found < kBins && found == buffers.bin) {
    buffers.count_above = found_count;
    buffers.mass_above = found_mass;
  }
  __syncthreads();
  const int bin = buffers.bin < kBins ? buffers.bin : buffers.top_bin;
  const Digit digit{bin, buffers.top_bin, buffers.count_above, buffers.mass_above};
  __syncthreads();
  return digit;
}

__device__ __forceinline__ Limits limits_of(const SamplingParams& p, const Place& at) {
  Limits limits{p.counts != nullptr, p.masses != nullptr, 0, 0.0};
  if (limits.has_k) {
    limits.k = top_k_of(p, at);
    limits.has_k = limits.k < static_cast<unsigned>(p.vocabulary);
  }
  if (limits.has_p) {
    limits.p = limit_of(p, at);
    limits.has_p = !(limits.p >= 1.0);
  }
  return limits;
}

// ---- steps ----

__device__ __forceinline__ void clear_step(const SamplingParams& p) {
  wait_for_predecessor();
  let_successor_start();
  uint4* const vectors = reinterpret_cast<uint4*>(p.states);
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < p.clear_vectors;
       i += int64_t{gridDim.x} * kThreads) {
    vectors[i] = {0, 0, 0, 0};
  }
}

template <bool kIsVector>
__device__ __forceinline__ void histogram_step(const SamplingParams& p) {
  __shared__ Histogram histogram;
  __shared__ ScanBuffers buffers;
  histogram.clear();
  wait_for_predecessor();
  let_successor_start();
  const Place at = place(p);
  SamplingState& state = p.states[at.row];
  unsigned* const counts = p.counts + int64_t{at.row} * kBins;
  unsigned long* const masses = p.masses + int64_t{at.row} * kBins;
  const bool has_count = p.counts != nullptr, has_mass = p.masses != nullptr, is_logits = p.is_logits;
  visit_segment<kIsVector>(at, [&](float value, int64_t) {
    const unsigned key = key_of(value, is_logits);
    if (key != 0) histogram.add(key >> 21, key, has_count, has_mass);
  });
  __syncthreads();
  if (p.chunks > 1) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      if (histogram.count[i] != 0) atomicAdd(&counts[i], histogram.count[i]);
      const uint64_t mass = histogram.mass(i);
      if (mass != 0) atomicAdd(reinterpret_cast<unsigned long long*>(&masses[i]), mass);
    }
    if (!is_last_block(&state.histogram_blocks, p.chunks)) return;
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      histogram.count[i] = has_count ? __ldcg(&counts[i]) : 0;
      const uint64_t mass = has_mass ? __ldcg(&masses[i]) : 0;
      histogram.mass_low[i] = static_cast<unsigned>(mass);
      histogram.mass_high[i] = static_cast<unsigned>(mass >> 32);
    }
    __syncthreads();
  }
  const Limits limits = limits_of(p, at);
  const Digit digit = find_digit<true>(histogram, limits, 0, 0, 0.0, buffers);
  if (threadIdx.x == 0) {
    const bool is_open = digit.bin >= 0 && (limits.has_k || limits.has_p);
    state.low = is_open ? static_cast<unsigned>(digit.bin) << 21 : 0;
    state.high = is_open ? static_cast<unsigned>(digit.bin + 1) << 21 : 0;
    state.count_above = digit.count_above;
    state.mass_above = digit.mass_above;
    state.max_exponent = max(digit.top_bin >> 3, 1);
  }
}

template <bool kIsVector>
__device__ __forceinline__ void maximum_step(const SamplingParams& p) {
  __shared__ unsigned block_max;
  if (threadIdx.x == 0) block_max = 0;
  wait_for_predecessor();
  let_successor_start();
  const Place at = place(p);
  SamplingState& state = p.states[at.row];
  unsigned key = 0;
  visit_segment<kIsVector>(at, [&](float value, int64_t) { key = max(key, key_of(value, false)); });
  key = __reduce_max_sync(kAllLanes, key);
  __syncthreads();
  if (threadIdx.x % 32 == 0) atomicMax(&block_max, key);
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(&state.max_key, block_max);
  if (!is_last_block(&state.histogram_blocks, p.chunks) || threadIdx.x != 0) return;
  const unsigned max_key = __ldcg(&state.max_key);
  const float least = limit_of(p, at) * __uint_as_float(max_key >> 1);
  state.low = state.high = min(key_of(least, false), max_key);
  state.max_exponent = exponent(max_key);
}

// Philox4x32-10 (Salmon et al., 2011): two of the four words. The counter is (offset / 4, row).
__device__ __forceinline__ uint64_t random_bits(uint64_t seed, uint64_t offset, uint64_t row) {
  const uint64_t block = offset / 4;
  unsigned c0 = block, c1 = block >> 32, c2 = row, c3 = row >> 32;
  unsigned k0 = seed, k1 = seed >> 32;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return uint64_t{c1} << 32 | c0;
}

struct SelectMemory {
  Histogram histogram;
  ScanBuffers buffers;
  union {
    unsigned stage[kWarps][kStage];
    unsigned long long segments[kMaxSegments];
  };
  uint64_t target;
  int segment;
};

// Draws a token: the first whose mass, added to that of the tokens before it, exceeds a random number below
// the whole. memory.segments holds what each segment of the row keeps.
__device__ __forceinline__ void draw(const SamplingParams& p, const Place& at, unsigned threshold,
                                     int max_exponent, SelectMemory& memory) {
  uint64_t masses[kSegmentsPerThread], sum = 0, total;
#pragma unroll
  for (int j = 0; j < kSegmentsPerThread; ++j) {
    const int segment = threadIdx.x * kSegmentsPerThread + j;
    masses[j] = segment < p.chunks * kWarps ? memory.segments[segment] : 0;
    sum += masses[j];
  }
  uint64_t before = scan_block(sum, memory.buffers.sum, total);
  if (total == 0) {  // nothing to draw from: zeros or NaN alone
    if (threadIdx.x == 0) p.tokens[at.row] = 0;
    return;
  }
  const uint64_t target = __umul64hi(random_bits(p.seed, p.offset, at.row), total);
#pragma unroll
  for (int j = 0; j < kSegmentsPerThread; ++j) {
    if (target >= before && target - before < masses[j]) {
      memory.segment = threadIdx.x * kSegmentsPerThread + j;
      memory.target = target - before;
    }
    before += masses[j];
  }
  __syncthreads();
  const int64_t begin = int64_t{memory.segment} * p.segment;
  const int64_t end = min(begin + p.segment, int64_t{p.vocabulary});
  const int per_thread = (p.segment + kThreads - 1) / kThreads;
  const int64_t own = begin + threadIdx.x * int64_t{per_thread}, own_end = min(own + per_thread, end);
  const auto mass_at = [&](int64_t i) -> uint64_t {
    const unsigned key = key_of(at.input[i], false);
    return key >= threshold && key != 0 ? fixed_mass(key, max_exponent, p.fraction_bits) : 0;
  };
  sum = 0;
  for (int64_t i = own; i < own_end; ++i) sum += mass_at(i);
  before = scan_block(sum, memory.buffers.sum, total);
  if (memory.target < before || memory.target - before >= sum) return;
  for (int64_t i = own; i < own_end; ++i) {
    const uint64_t mass = mass_at(i);
    if (memory.target - before < mass) {
      p.tokens[at.row] = static_cast<int>(i);
      return;
    }
    before += mass;
  }
}

// Calls visit(key, segment) for the row's keys in [low, high): from the list, or from the row where the list
// was too short.
template <class Visit>
__device__ __forceinline__ void visit_candidates(const SamplingParams& p, const Place& at, unsigned count,
                                                 unsigned low, unsigned high, Visit visit) {
  if (count <= static_cast<unsigned>(p.capacity)) {
    const unsigned long* const list = p.candidates + int64_t{at.row} * p.capacity;
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < count; i += kThreads) {
      const uint64_t candidate = __ldcg(&list[i]);
      visit(static_cast<unsigned>(candidate >> 32), static_cast<int>(candidate));
    }
    return;
  }
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < p.vocabulary; i += kThreads) {
    const unsigned key = key_of(at.input[i], p.is_logits);
    if (key >= low && key < high) visit(key, static_cast<int>(i / p.segment));
  }
}

// The threshold, a key of [low, high): its second and third digit.
__device__ __forceinline__ unsigned find_threshold(const SamplingParams& p, const Place& at,
                                                   const SamplingState& state, unsigned count,
                                                   SelectMemory& memory) {
  const Limits limits = limits_of(p, at);
  const unsigned low = state.low, high = state.high;
  const int common_exponent = exponent(low);
  memory.histogram.clear();
  visit_candidates(p, at, count, low, high, [&](unsigned key, int) {
    memory.histogram.add(key >> 10 & 2047, key, limits.has_k, limits.has_p);
  });
  __syncthreads();
  const Digit second = find_digit<false>(memory.histogram, limits, common_exponent, state.count_above,
                                         state.mass_above, memory.buffers);
  const unsigned prefix = low >> 10 | second.bin;
  memory.histogram.clear();
  visit_candidates(p, at, count, low, high, [&](unsigned key, int) {
    if (key >> 10 == prefix) memory.histogram.add(key & 1023, key, limits.has_k, limits.has_p);
  });
  __syncthreads();
  const Digit third = find_digit<false>(memory.histogram, limits, common_exponent, second.count_above,
                                        second.mass_above, memory.buffers);
  return prefix << 10 | third.bin;
}

template <bool kIsVector>
__device__ __forceinline__ void select_step(const SamplingParams& p) {
  __shared__ SelectMemory memory;
  wait_for_predecessor();
  let_successor_start();
  const Place at = place(p);
  SamplingState& state = p.states[at.row];
  const unsigned low = state.low, high = state.high;
  const int max_exponent = state.max_exponent, fraction_bits = p.fraction_bits;
  const int lane = threadIdx.x % 32;
  unsigned* const stage = memory.stage[threadIdx.x / 32];
  const bool is_logits = p.is_logits, is_sampler = p.tokens != nullptr;

  // What is kept for sure, and the candidates.
  uint64_t kept = 0;
  int staged = 0;
  const auto flush = [&] {
    unsigned first = 0;
    if (lane == 0) first = atomicAdd(&state.candidates, static_cast<unsigned>(staged));
    first = __shfl_sync(kAllLanes, first, 0);
    for (int i = lane; i < staged; i += 32) {
      if (first + i < static_cast<unsigned>(p.capacity)) {
        p.candidates[int64_t{at.row} * p.capacity + first + i] =
            uint64_t{stage[i]} << 32 | static_cast<unsigned>(at.segment);
      }
    }
    staged = 0;
    __syncwarp();
  };
  visit_segment<kIsVector>(at, [&](float value, int64_t) {
    const unsigned key = key_of(value, is_logits);
    if (!is_logits && key >= high && key != 0) kept += fixed_mass(key, max_exponent, fraction_bits);
    const bool is_candidate = key >= low && key < high && key != 0;
    const unsigned lanes = __ballot_sync(kAllLanes, is_candidate);
    if (lanes == 0) return;
    if (is_candidate) stage[staged + __popc(lanes & ((1u << lane) - 1))] = key;
    staged += __popc(lanes);
    __syncwarp();
    if (staged > kStage - 32) flush();
  });
  if (staged > 0) flush();
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) kept += __shfl_xor_sync(kAllLanes, kept, offset);
  unsigned long* const segments = p.segments + int64_t{at.row} * p.chunks * kWarps;
  if (lane == 0) {
    if (is_sampler) {
      segments[at.segment] = kept;
    } else if (kept != 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&state.kept), kept);
    }
  }
  if (!is_last_block(&state.select_blocks, p.chunks)) return;

  const unsigned count = __ldcg(&state.candidates);
  const unsigned threshold = low == high ? low : find_threshold(p, at, state, count, memory);
  if (is_sampler) {
    for (int i = threadIdx.x; i < p.chunks * kWarps; i += kThreads) memory.segments[i] = __ldcg(&segments[i]);
    __syncthreads();
    visit_candidates(p, at, count, low, high, [&](unsigned key, int segment) {
      if (key >= threshold) {
        atomicAdd(&memory.segments[segment], fixed_mass(key, max_exponent, fraction_bits));
      }
    });
    __syncthreads();
    draw(p, at, threshold, max_exponent, memory);
    return;
  }
  uint64_t more = 0, total = 0;
  if (!is_logits) {
    visit_candidates(p, at, count, low, high, [&](unsigned key, int) {
      if (key >= threshold) more += fixed_mass(key, max_exponent, fraction_bits);
    });
    scan_block(more, memory.buffers.sum, total);
  }
  if (threadIdx.x == 0) {
    state.threshold = threshold;
    state.divisor = static_cast<float>(static_cast<double>(__ldcg(&state.kept) + total) *
                                       power_of_two(max_exponent - 150 - fraction_bits));
  }
}

template <bool kIsVector>
__device__ __forceinline__ void apply_step(const SamplingParams& p) {
  constexpr int kSize = kIsVector ? 4 : 1, kUnroll = kIsVector ? 4 : 8;
  wait_for_predecessor();
  let_successor_start();
  const Place at = place(p);
  const unsigned threshold = p.states[at.row].threshold;
  const float divisor = p.states[at.row].divisor;
  const bool is_logits = p.is_logits;
  float* const output = p.output + at.row * p.output_stride;
  for (int64_t start = at.begin + threadIdx.x % 32 * kSize; start < at.end; start += 32 * kSize * kUnroll) {
    Vector<float, kSize> values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = start + u * 32 * kSize;
#pragma unroll
      for (int j = 0; j < kSize; ++j) values[u][j] = 0.0f;
      if (i < at.end) values[u] = load<float, kSize>(at.input + i);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = start + u * 32 * kSize;
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        const float value = values[u][j];
        const unsigned key = key_of(value, is_logits);
        if (is_logits) {
          values[u][j] = key >= threshold ? value : __uint_as_float(0xff800000u);
        } else {
          values[u][j] = key >= threshold && key != 0 ? value / divisor : 0.0f;
        }
      }
      if (i < at.end) store(output + i, values[u]);
    }
  }
}

}  // namespace sglk

#define SGLK_SAMPLING_STEP(step, shape, call)                                         \
  extern "C" __global__ void __launch_bounds__(sglk::kThreads)                        \
      sampling_##step##_f32_##shape(const __grid_constant__ sglk::SamplingParams p) { \
    sglk::call(p);                                                                    \
  }

#define SGLK_SAMPLING(shape, is_vector)                           \
  SGLK_SAMPLING_STEP(clear, shape, clear_step)                    \
  SGLK_SAMPLING_STEP(histogram, shape, histogram_step<is_vector>) \
  SGLK_SAMPLING_STEP(maximum, shape, maximum_step<is_vector>)     \
  SGLK_SAMPLING_STEP(select, shape, select_step<is_vector>)       \
  SGLK_SAMPLING_STEP(apply, shape, apply_step<is_vector>)

SGLK_SAMPLING(vector, true)
SGLK_SAMPLING(element, false)
