// Tensor core products of sm_90a (wgmma), and the barriers and bulk copies that feed them.
#pragma once

#include "common/types.cuh"

namespace sglk {

// One lane of the warp, all of which call it.
__device__ __forceinline__ bool elect_lane() {
  uint32_t is_elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(is_elected)::"memory");
  return is_elected;
}

// --- mbarrier: phases of arrivals, and of bytes that copies bring ---

__device__ __forceinline__ void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers known to the copy engine.
__device__ __forceinline__ void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void arrive_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait_barrier(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// --- copies by the copy engine, which arrive at a barrier in bytes ---

// The box of a tensor map whose first element is (x, y), to an address aligned to 128 bytes, or 1024 where
// the map swizzles. What is beyond the matrix is zero, and counts.
__device__ __forceinline__ void copy_box(uint32_t target, const void* map, int x, int y, uint32_t barrier,
                                         uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(target),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void copy_box(uint32_t target, const void* map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(target),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void prefetch_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// --- wgmma ---

// Registers of a warpgroup: to be given up or taken by every warp of it.
template <int kRegisters>
__device__ __forceinline__ void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Before the first of a batch of products, after registers that they read or add to were written.
__device__ __forceinline__ void open_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Descriptor of a [rows, 64] 16-bit operand in shared memory, aligned to 1024 bytes, swizzled by 128 bytes
// (PTX ISA, "Matrix descriptor format"): eight rows are 1024 bytes. Add 2 for each step of 16 columns. A
// block has less than 256 KB, so that its addresses fit the 14 bits.
__device__ __forceinline__ uint64_t operand_descriptor(uint32_t address) {
  return (uint64_t{address} >> 4) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// d[64, kN] = a[64, 16] · b[kN, 16]ᵀ, plus d where it adds, a in registers (fragments of mma.m16n8k16, a warp
// has 16 rows), d as the C fragments of kN / 8 such products.
template <class T, int kN>
__device__ __forceinline__ void multiply_async(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                               bool adds);

#define SGLK_WGMMA_16_D "%0, %1, %2, %3, %4, %5, %6, %7"
#define SGLK_WGMMA_32_D "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SGLK_WGMMA_64_D                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SGLK_WGMMA_128_D                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define SGLK_D8(d, i)                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define SGLK_D16(d, i) SGLK_D8(d, i), SGLK_D8(d, i + 8)
#define SGLK_D32(d, i) SGLK_D16(d, i), SGLK_D16(d, i + 16)
#define SGLK_D64(d, i) SGLK_D32(d, i), SGLK_D32(d, i + 32)

#define SGLK_WGMMA(type, name, n, half, a0, a1, a2, a3, b, is_adding)                                      \
  template <>                                                                                              \
  __device__ __forceinline__ void multiply_async<type, n>(float (&d)[half], const uint32_t (&a)[4],        \
                                                          uint64_t descriptor, bool adds) {                \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %" #is_adding                                     \
                 ", 0;\n"                                                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #name "." #name " {" SGLK_WGMMA_##n##_D \
                 "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", adds, 1, 1, 0;\n}"                 \
                 : SGLK_D##half(d, 0)                                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(int{adds}));           \
  }
#define SGLK_WGMMA_TYPES(...) SGLK_WGMMA(bf16, bf16, __VA_ARGS__) SGLK_WGMMA(f16, f16, __VA_ARGS__)
SGLK_WGMMA_TYPES(16, 8, 8, 9, 10, 11, 12, 13)
SGLK_WGMMA_TYPES(32, 16, 16, 17, 18, 19, 20, 21)
SGLK_WGMMA_TYPES(64, 32, 32, 33, 34, 35, 36, 37)
SGLK_WGMMA_TYPES(128, 64, 64, 65, 66, 67, 68, 69)

#undef SGLK_WGMMA_TYPES
#undef SGLK_WGMMA

}  // namespace sglk
