// Programmatic dependent launch (sm_90 and later; nothing elsewhere): a kernel may start while its predecessor
// drains. Every kernel of ours waits before it touches memory, so the overlap is that of launch and set-up alone.
#pragma once

namespace sglk {

// Until the predecessor's writes are visible. Returns at once in an ordinary launch.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the successor's blocks be placed as soon as there is room.
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace sglk
