// Programmatic dependent launch (sm_90 and later; nothing elsewhere): a kernel may start while its
// predecessor drains. Every kernel of ours waits before it touches memory, so the overlap is that of launch
// and set-up; but for the Marlin GEMM, which copies its first weights before it waits. What writes those (the
// repacking, torch) therefore never lets its successor start early; a kernel starts after such a predecessor
// is complete.
//
// A kernel may let its successor start before it waits itself: the successor waits until this kernel is
// complete, which is after its own wait, so it sees all that came before. Between two products of a layer
// lies a norm or an activation of a few blocks; let start so early, the second product's blocks take the
// place of the first's that end, and fetch weights (a layer of Qwen3-32B, 1 to 16 tokens, 6 us less; H200,
// 2026-11-27).
#pragma once

namespace sglk {

// Until the predecessor's writes are visible. Returns at once in an ordinary launch.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the successor's blocks be placed as soon as there is room. Only for a small grid, which has room: the
// instruction costs the whole GPU about 1.5 ns a block (H200, 2026-11-23), and 100,000 blocks need 150 us.
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  if (gridDim.x * gridDim.y <= 4096) asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace sglk
