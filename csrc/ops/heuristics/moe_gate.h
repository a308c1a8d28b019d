// Which moe_gate kernel for which shape: pure functions, tested on the CPU.
#pragma once

#include <cstdint>
#include <iterator>
#include <string>

namespace sglk::moe_gate {

enum Op { kTopkSoftmax, kMoeFusedGate };
enum ElementType { kBf16, kF16, kF32 };
constexpr int kElementTypes = 3;
constexpr int kWarps = 4;     // of a block, one a token
constexpr int kMaxKept = 32;  // choices that a warp holds, one a lane

struct Shape {
  const char* name;
  int values;  // of a lane; 0: any number, and any number of choices
};
constexpr Shape kShapes[] = {{"warp_1", 1}, {"warp_2", 2},   {"warp_4", 4},
                             {"warp_8", 8}, {"warp_16", 16}, {"any", 0}};
constexpr int kShapeCount = std::size(kShapes);
constexpr int kAny = kShapeCount - 1;  // of topk_softmax alone
constexpr int kMaxExperts = 32 * 16;   // of the other shapes
constexpr int kKernelCount = kElementTypes * (kShapeCount + kAny);

inline int choose(int64_t experts, int64_t topk) {
  if (topk > kMaxKept) return kAny;
  int shape = 0;
  while (shape < kAny && 32 * kShapes[shape].values < experts) ++shape;
  return shape;
}

inline int64_t blocks(int64_t tokens) { return (tokens + kWarps - 1) / kWarps; }

inline int kernel_index(Op op, ElementType type, int shape) {
  return op == kTopkSoftmax ? int{type} * kShapeCount + shape
                            : kElementTypes * kShapeCount + int{type} * kAny + shape;
}

inline std::string kernel_name(int index) {
  static constexpr const char* kTypeNames[] = {"bf16", "f16", "f32"};
  const bool is_softmax = index < kElementTypes * kShapeCount;
  const int shapes = is_softmax ? kShapeCount : kAny;
  if (!is_softmax) index -= kElementTypes * kShapeCount;
  return std::string(is_softmax ? "topk_softmax_" : "moe_fused_gate_") + kTypeNames[index / shapes] + "_" +
         kShapes[index % shapes].name;
}

}  // namespace sglk::moe_gate
