// The choices of all tokens, sorted by expert into runs of whole blocks, sm_80 and later.
//
// Bucket b collects the choices of expert b − 1 (bucket 0: choices that were masked out), in ascending order,
// at the start of a run whose length is a multiple of block_size. A choice outside of all buckets is left
// out.
//
//   single  one block does it all
//   count   a block counts its segment of the choices, and fills its part of the output with padding
//   place   a block adds up the counts of the segments before its own, and places its segment
//
//   choices   |segment 0    |segment 1    |...     one segment a block
//             |w 0|w 1|...  |w 0|w 1|...           one run of 32-choice rows a warp
//   place  =  start of the bucket + choices of the bucket in segments before + in warps before + in rows
//   before
//             + in lanes before
#include "common/pdl.cuh"
#include "common/types.cuh"
#include "moe_align.h"

namespace sglk {

constexpr int kMaxThreads = 1024;

// The bucket of a choice, or −1.
template <class Id>
__device__ __forceinline__ int bucket_of(const MoeAlignParams& p, int choice, int end) {
  if (choice >= end) return -1;
  const int64_t bucket = int64_t{static_cast<const Id*>(p.ids)[choice]} + 1;
  return bucket >= 0 && bucket < p.buckets ? static_cast<int>(bucket) : -1;
}

__device__ __forceinline__ void pad(const MoeAlignParams& p) {
  if (!p.is_padded) return;
  const unsigned size = p.sorted_size;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    p.sorted[i] = p.choices;
  }
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
  pad(p);
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
  int* const next = shared;                      // [warps, buckets]: where a warp puts its next choice
  int* const before = next + warps * p.buckets;  // [buckets]: choices in the segments before this one
  int* const all = before + p.buckets;           // [buckets]: choices; later the end of the run
  int* const own = next + warp * p.buckets;
  for (int i = threadIdx.x; i < (warps + 2) * p.buckets; i += blockDim.x) shared[i] = 0;
  __syncthreads();
  wait_for_predecessor();
  if (kIsSingle) let_successor_start();
  if (kIsSingle) pad(p);

  const int segment_end = min(static_cast<int>((blockIdx.x + 1) * p.segment), p.choices);
  const int per_warp = p.segment / warps;
  const int first = blockIdx.x * p.segment + warp * per_warp;
  const int end = min(first + per_warp, segment_end);
  for (int row = first; row < end; row += 32) {
    const int bucket = bucket_of<Id>(p, row + lane, end);
    if (bucket >= 0) atomicAdd(own + bucket, 1);
  }
  if (!kIsSingle) {
    // Threads side by side take buckets side by side; the groups of threads share the segments.
    const int width = min((p.buckets + 31) / 32 * 32, static_cast<int>(blockDim.x));
    const int groups = blockDim.x / width, group = threadIdx.x / width;
    for (int b = threadIdx.x % width; group < groups && b < p.buckets; b += width) {
      int earlier = 0, sum = 0;
#pragma unroll 8
      for (int s = group; s < gridDim.x; s += groups) {
        const int in_segment = p.counts[int64_t{s} * p.buckets + b];
        sum += in_segment;
        if (s < blockIdx.x) earlier += in_segment;
      }
      atomicAdd(before + b, earlier);
      atomicAdd(all + b, sum);
    }
  }
  __syncthreads();

  // Counts become places, bucket by bucket.
  int start = 0;
  for (int base = 0; base < p.buckets; base += blockDim.x) {
    const int b = base + threadIdx.x;
    int sum = 0;
    if (b < p.buckets) {
      if (kIsSingle) {
        for (int w = 0; w < warps; ++w) sum += next[w * p.buckets + b];
      } else {
        sum = all[b];
      }
    }
    const int padded = (sum + p.block_size - 1) / p.block_size * p.block_size;
    int total;
    const int begin = start + exclusive_sum(padded, total);
    start += total;
    if (b < p.buckets) {
      int at = begin + before[b];
      for (int w = 0; w < warps; ++w) {
        const int in_warp = next[w * p.buckets + b];
        next[w * p.buckets + b] = at;
        at += in_warp;
      }
      all[b] = begin + padded;
    }
  }
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.total = start;

  for (int row = first; row < end; row += 32) {
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

  // The label of a block of the output: the first bucket that ends behind it, less 1.
  const int blocks = min(start / p.block_size, p.labels_size);
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < blocks; i += gridDim.x * blockDim.x) {
    int low = 0, high = p.buckets - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (all[middle] > i * p.block_size) {
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
