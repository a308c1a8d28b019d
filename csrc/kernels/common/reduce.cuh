// Sums over a group of lanes and over a block.
#pragma once

namespace sglk {

// Every lane of an aligned group of kLanes (a power of two) gets the group's sum. All 32 lanes call it.
template <int kLanes>
__device__ __forceinline__ float sum_lanes(float value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Every thread of the block gets the block's sum. blockDim.x is a multiple of 32, at most 1024. Called once a
// kernel, or with a barrier between the calls: the partial sums share one buffer.
__device__ __forceinline__ float sum_block(float value) {
  __shared__ float partial[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  value = sum_lanes<32>(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return sum_lanes<32>(lane < blockDim.x / 32 ? partial[lane] : 0.0f);
}

}  // namespace sglk
