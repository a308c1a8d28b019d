// The choices of all tokens, sorted by expert into runs of whole blocks, sm_80 and later.
//
// Bucket b collects the choices of expert b − 1 (bucket 0: choices that were masked out), in ascending order,
// at the start of a run whose length is a multiple of block_size. A choice outside of all buckets is left
// out.
//
//   single  a block counts all choices, and places its segment of them
//   count   a block counts its segment
//   place   a block adds up the counts of the other segments, and places its own
//
//   choices   |segment 0    |segment 1    |...     one segment a block
//             |w 0|w 1|...  |w 0|w 1|...           one run of 32-choice rows a placing warp
//   place  =  start of the bucket + choices of the bucket in segments before + in warps before + in rows
//   before
//             + in lanes before
//
// A block knows the runs of all buckets, so it can fill its share of the places where no choice comes to be:
// no place is written twice, and blocks wait for nothing of each other.
#include "common/pdl.cuh"
#include "common/types.cuh"
#include "moe_align.h"

namespace sglk {

constexpr int kMaxThreads = 1024;
constexpr int kBatch = 4;  // loads that a thread has under way

// The bucket of a choice, or −1.
template <class Id>
__device__ __forceinline__ int bucket_of(const MoeAlignParams& p, int choice, int end) {
  if (choice >= end) return -1;
  const int64_t bucket = int64_t{static_cast<const Id*>(p.ids)[choice]} + 1;
  return bucket >= 0 && bucket < p.buckets ? static_cast<int>(bucket) : -1;
}

template <class Id>
__device__ __forceinline__ void count(const MoeAlignParams& p) {
  extern __shared__ int in_bucket[];  // [buckets]
  for (int b = threadIdx.x; b < p.buckets; b += blockDim.x) in_bucket[b] = 0;
  __syncthreads();
  wait_for_predecessor();
  let_successor_start();

  const int first = blockIdx.x * p.segment;
  const int end = min(first + p.segment, p.choices);
  for (int choice = first + threadIdx.x; choice < end; choice += blockDim.x) {
    const int bucket = bucket_of<Id>(p, choice, end);
    if (bucket >= 0) atomicAdd(in_bucket + bucket, 1);
  }
  __syncthreads();
  int* const counts = p.counts + int64_t{blockIdx.x} * p.buckets;
  for (int b = threadIdx.x; b < p.buckets; b += blockDim.x) counts[b] = in_bucket[b];
}

// Sums of the values of all threads before this one; total: of all threads. All threads call it.
__device__ __forceinline__ int exclusive_sum(int value, int& total) {
  __shared__ int of_warp[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += other;
  }
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  const int warps = blockDim.x / 32;
  const int mine = lane < warps ? of_warp[lane] : 0;
  total = __reduce_add_sync(0xffffffffu, mine);
  const int before = __reduce_add_sync(0xffffffffu, lane < warp ? mine : 0);
  __syncthreads();  // of_warp may be written again
  return before + sum - value;
}

template <class Id, bool kIsSingle>
__device__ __forceinline__ void place(const MoeAlignParams& p) {
  extern __shared__ int shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int* const before = shared;  // [buckets]: choices in the segments before; later the end of them all
  int* const next = before + p.buckets;             // [placers, buckets]: where a warp puts its next choice
  int* const after = next + p.placers * p.buckets;  // [buckets]: in the segments after; later end of the run
  for (int i = threadIdx.x; i < (p.placers + 2) * p.buckets; i += blockDim.x) shared[i] = 0;
  __syncthreads();
  wait_for_predecessor();
  if (kIsSingle) let_successor_start();

  const int segment = min(static_cast<int>(blockIdx.x) * p.segment, p.choices);
  const int segment_end = min(segment + p.segment, p.choices);
  const int per_warp = kIsSingle ? 32 : p.segment / p.placers;
  const int first = segment + warp * per_warp;
  const int end = warp < p.placers ? min(first + per_warp, segment_end) : first;
  if (kIsSingle) {
    for (int base = threadIdx.x; base < p.choices; base += kBatch * blockDim.x) {
      int bucket[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) bucket[i] = bucket_of<Id>(p, base + i * blockDim.x, p.choices);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int choice = base + i * blockDim.x;
        const int row = choice < segment ? 0 : min((choice - segment) / per_warp, p.placers) + 1;
        if (bucket[i] >= 0) atomicAdd(shared + row * p.buckets + bucket[i], 1);
      }
    }
  } else {
    for (int row = first; row < end; row += 32) {
      const int bucket = bucket_of<Id>(p, row + lane, end);
      if (bucket >= 0) atomicAdd(next + warp * p.buckets + bucket, 1);
    }
    // Threads side by side take buckets side by side; the groups of threads share the segments.
    const int width = min((p.buckets + 31) / 32 * 32, static_cast<int>(blockDim.x));
    const int groups = blockDim.x / width, group = threadIdx.x / width;
    for (int b = threadIdx.x % width; group < groups && b < p.buckets; b += width) {
      int earlier = 0, later = 0;
#pragma unroll 8
      for (int s = group; s < gridDim.x; s += groups) {
        const int in_segment = p.counts[int64_t{s} * p.buckets + b];
        if (s < blockIdx.x) earlier += in_segment;
        if (s > blockIdx.x) later += in_segment;
      }
      atomicAdd(before + b, earlier);
      atomicAdd(after + b, later);
    }
  }
  __syncthreads();

  // Counts become places, bucket by bucket.
  int start = 0;
  for (int base = 0; base < p.buckets; base += blockDim.x) {
    const int b = base + threadIdx.x;
    int sum = 0;
    if (b < p.buckets) {
      sum = before[b] + after[b];
      for (int w = 0; w < p.placers; ++w) sum += next[w * p.buckets + b];
    }
    const int padded = (sum + p.block_size - 1) / p.block_size * p.block_size;
    int total;
    const int begin = start + exclusive_sum(padded, total);
    start += total;
    if (b < p.buckets) {
      int at = begin + before[b];
      for (int w = 0; w < p.placers; w += kBatch) {
        int in_warp[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) in_warp[i] = w + i < p.placers ? next[(w + i) * p.buckets + b] : 0;
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (w + i < p.placers) next[(w + i) * p.buckets + b] = at;
          at += in_warp[i];
        }
      }
      before[b] = begin + sum;
      after[b] = begin + padded;
    }
  }
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.total = start;

  for (int row = first; row < end; row += 32) {
    int* const own = next + warp * p.buckets;
    const int choice = row + lane;
    const int bucket = bucket_of<Id>(p, choice, end);
    const unsigned same = __match_any_sync(0xffffffffu, bucket);
    const int rank = __popc(same & ((1u << lane) - 1));
    const int at = bucket >= 0 ? own[bucket] + rank : p.sorted_size;
    if (at < p.sorted_size) p.sorted[at] = choice;
    __syncwarp();  // all have read their place before the first of each bucket moves it on
    if (bucket >= 0 && rank == 0) own[bucket] += __popc(same);
    __syncwarp();
  }

  // What is left goes to the last warps first: the first ones place.
  if (p.is_padded) {
    for (int b = (warps - 1 - warp) * gridDim.x + blockIdx.x; b < p.buckets; b += warps * gridDim.x) {
      const int run_end = min(after[b], p.sorted_size);
      for (int i = before[b] + lane; i < run_end; i += 32) p.sorted[i] = p.choices;
    }
    const int threads = gridDim.x * blockDim.x;
    for (int i = start + blockIdx.x * blockDim.x + threadIdx.x; i < p.sorted_size; i += threads) {
      p.sorted[i] = p.choices;
    }
  }

  // The label of a block of the output: the first bucket that ends behind it, less 1.
  const int blocks = min(start / p.block_size, p.labels_size);
  const int turn = blockIdx.x * blockDim.x + blockDim.x - 1 - threadIdx.x;
  for (int i = turn; i < blocks; i += gridDim.x * blockDim.x) {
    int low = 0, high = p.buckets - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (after[middle] > i * p.block_size) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    p.labels[i] = low - 1;
  }
  if (!kIsSingle) let_successor_start();
}

}  // namespace sglk

#define SGLK_ALIGN(id, type, shape, function)                                               \
  extern "C" __global__ void __launch_bounds__(sglk::kMaxThreads)                           \
      moe_align_block_size_##id##_##shape(const __grid_constant__ sglk::MoeAlignParams p) { \
    sglk::function(p);                                                                      \
  }
#define SGLK_COMMA ,

#define SGLK_ALIGNS(id, type)                               \
  SGLK_ALIGN(id, type, single, place<type SGLK_COMMA true>) \
  SGLK_ALIGN(id, type, count, count<type>)                  \
  SGLK_ALIGN(id, type, place, place<type SGLK_COMMA false>)

SGLK_ALIGNS(i32, int32_t)
SGLK_ALIGNS(i64, int64_t)
