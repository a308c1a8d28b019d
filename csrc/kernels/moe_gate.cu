// Choice of experts per token, for fp16, bf16 and fp32 logits, sm_80 and later. One warp a token.
//
//   topk_softmax    p = softmax(x); the topk largest, descending; renormalised: divided by their sum
//   moe_fused_gate  s = sigmoid(x), c = s + bias; a group scores the sum of its two largest c; of the
//                   topk_group best groups the experts with the largest c, descending; their weight is s / Σ
//                   s
//
// Equal values: the lower index first. A warp holds a row as kValues values a lane, expert value · 32 + lane,
// and takes the largest with two warp-wide integer reductions: of an integer that orders like the value, then
// of the index among the lanes that have it. The shape "any" keeps nothing and reads the row anew for each.
#include <math_constants.h>

#include "common/pdl.cuh"
#include "common/reduce.cuh"
#include "common/types.cuh"
#include "moe_gate.h"

namespace sglk {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr uint32_t kFull = 0xffffffffu;

// Orders like x; both zeros are equal, every NaN comes first. 0 is no value's.
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return x != x ? 0xffffffffu : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key);
}

// The largest key of the warp and its lowest index; every lane passes its own best.
struct Best {
  uint32_t key;
  int index;
};
__device__ __forceinline__ Best warp_best(uint32_t key, int index) {
  const uint32_t highest = __reduce_max_sync(kFull, key);
  const uint32_t lowest = __reduce_min_sync(kFull, key == highest ? static_cast<uint32_t>(index) : kFull);
  return {highest, static_cast<int>(lowest)};
}

// The largest of a lane's values; of equal ones the first, which has the lowest index. 0 where none is left.
template <int kValues>
__device__ __forceinline__ Best lane_best(const uint32_t (&key)[kValues], int lane) {
  Best best{key[0], lane};
#pragma unroll
  for (int v = 1; v < kValues; ++v) {
    if (key[v] > best.key) best = {key[v], v * 32 + lane};
  }
  return best;
}

template <int kValues>
__device__ __forceinline__ void remove(uint32_t (&key)[kValues], int lane, int index) {
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
    if (v * 32 + lane == index) key[v] = 0;
  }
}

template <class T, int kValues>
__device__ __forceinline__ void topk_softmax(const MoeGateParams& p) {
  const int lane = threadIdx.x % 32;
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  wait_for_predecessor();
  let_successor_start();
  if (token >= p.tokens) return;  // whole warps
  const T* const input = static_cast<const T*>(p.input) + token * p.input_stride;

  T x[kValues];
#pragma unroll
  for (int v = 0; v < kValues; ++v) x[v] = input[min(v * 32 + lane, p.experts - 1)];
  uint32_t key[kValues];
#pragma unroll
  for (int v = 0; v < kValues; ++v) key[v] = v * 32 + lane < p.experts ? key_of(to_float(x[v])) : 0;

  float highest = 0.0f, sum = 0.0f, own = 0.0f;
  int own_id = 0;
  for (int i = 0; i < p.topk; ++i) {
    const Best mine = lane_best(key, lane);
    const Best best = warp_best(mine.key, mine.index);
    remove(key, lane, best.index);
    if (i == 0) {
      highest = value_of(best.key);
      if (!p.is_renormalized) {
#pragma unroll
        for (int v = 0; v < kValues; ++v) {
          if (v * 32 + lane < p.experts) sum += expf(to_float(x[v]) - highest);
        }
        sum = sum_lanes<32>(sum);
      }
    }
    const float weight = expf(value_of(best.key) - highest);
    if (p.is_renormalized) sum += weight;
    if (i == lane) {
      own = weight;
      own_id = best.index;
    }
  }
  if (lane < p.topk) {
    p.weights[token * p.weights_stride + lane] = own / sum;
    p.ids[token * p.ids_stride + lane] = own_id;
  }
}

// For any number of experts and of choices: each follows from its predecessor alone.
template <class T>
__device__ __forceinline__ void topk_softmax_any(const MoeGateParams& p) {
  const int lane = threadIdx.x % 32;
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  wait_for_predecessor();
  let_successor_start();
  if (token >= p.tokens) return;
  const T* const input = static_cast<const T*>(p.input) + token * p.input_stride;
  float* const weights = p.weights + token * p.weights_stride;

  Best last{0xffffffffu, -1};
  float highest = 0.0f, sum = 0.0f;
  for (int i = 0; i < p.topk; ++i) {
    Best mine{0, 0};
    for (int expert = lane; expert < p.experts; expert += 32) {
      const uint32_t key = key_of(to_float(input[expert]));
      const bool is_left = key < last.key || (key == last.key && expert > last.index);
      if (is_left && key > mine.key) mine = {key, expert};
    }
    last = warp_best(mine.key, mine.index);
    if (i == 0) {
      highest = value_of(last.key);
      if (!p.is_renormalized) {
        for (int expert = lane; expert < p.experts; expert += 32) {
          sum += expf(to_float(input[expert]) - highest);
        }
        sum = sum_lanes<32>(sum);
      }
    }
    const float weight = expf(value_of(last.key) - highest);
    if (p.is_renormalized) sum += weight;
    if (i % 32 == lane) {
      weights[i] = weight;
      p.ids[token * p.ids_stride + i] = last.index;
    }
  }
  for (int i = lane; i < p.topk; i += 32) weights[i] /= sum;  // each lane what it wrote itself
}

__device__ __forceinline__ float load_bias(const MoeGateParams& p, int expert) {
  if (p.bias_type == 0) return to_float(static_cast<const bf16*>(p.bias)[expert]);
  if (p.bias_type == 1) return to_float(static_cast<const f16*>(p.bias)[expert]);
  return static_cast<const float*>(p.bias)[expert];
}

// The key of the sum of the two largest values in the lane's group: group_size lanes next to one another.
__device__ __forceinline__ uint32_t group_key(float value, int group_size) {
  float first = value, second = -CUDART_INF_F;
  for (int offset = 1; offset < group_size; offset *= 2) {
    const float other_first = __shfl_xor_sync(kFull, first, offset);
    const float other_second = __shfl_xor_sync(kFull, second, offset);
    second = fmaxf(fminf(first, other_first), fmaxf(second, other_second));
    first = fmaxf(first, other_first);
  }
  return key_of(group_size > 1 ? first + second : first);
}

template <class T, int kValues>
__device__ __forceinline__ void moe_fused_gate(const MoeGateParams& p) {
  const int lane = threadIdx.x % 32;
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  wait_for_predecessor();
  let_successor_start();
  if (token >= p.tokens) return;
  const T* const input = static_cast<const T*>(p.input) + token * p.input_stride;

  T x[kValues];
  float bias[kValues];
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
    const int expert = min(v * 32 + lane, p.experts - 1);
    x[v] = input[expert];
    bias[v] = load_bias(p, expert);
  }
  float score[kValues];
  uint32_t key[kValues], group[kValues];
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
    const bool is_expert = v * 32 + lane < p.experts;
    score[v] = __fdiv_rn(1.0f, 1.0f + expf(-to_float(x[v])));
    const float choice = score[v] + bias[v];
    const uint32_t of_group = group_key(is_expert ? choice : -CUDART_INF_F, p.group_size);
    key[v] = is_expert ? key_of(choice) : 0;
    group[v] = is_expert ? of_group : 0;
  }

  // The best groups: kept ones lose their key, what has one at the end is out.
  const int group_log2 = __ffs(p.group_size) - 1;
  for (int i = 0; i < p.topk_group; ++i) {
    const Best mine = lane_best(group, lane);
    const int kept = warp_best(mine.key, mine.index >> group_log2).index;
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      if ((v * 32 + lane) >> group_log2 == kept) group[v] = 0;
    }
  }
#pragma unroll
  for (int v = 0; v < kValues; ++v) key[v] = group[v] == 0 ? key[v] : 0;

  float sum = 0.0f, own = 0.0f;
  int own_id = 0;
  const int routed = p.topk - p.shared;
  for (int i = 0; i < routed; ++i) {
    const Best mine = lane_best(key, lane);
    const int expert = warp_best(mine.key, mine.index).index;
    float chosen = 0.0f;  // of the lane that has the expert
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      if (v * 32 + lane == expert) chosen = score[v];
    }
    chosen = __shfl_sync(kFull, chosen, expert % 32);
    remove(key, lane, expert);
    sum += chosen;
    if (i == lane) {
      own = chosen;
      own_id = expert;
    }
  }
  if (lane < p.topk) {
    const bool is_shared = lane >= routed;
    p.weights[token * p.weights_stride + lane] = is_shared ? p.shared_weight : own / sum * p.scale;
    p.ids[token * p.ids_stride + lane] = is_shared ? p.experts + lane - routed : own_id;
  }
}

}  // namespace sglk

#define SGLK_GATE(op, dtype, type, shape, function)                           \
  extern "C" __global__ void __launch_bounds__(sglk::kThreads)                \
      op##_##dtype##_##shape(const __grid_constant__ sglk::MoeGateParams p) { \
    sglk::function(p);                                                        \
  }

#define SGLK_GATE_WARP(op, dtype, type, values) \
  SGLK_GATE(op, dtype, type, warp_##values, op<type SGLK_COMMA values>)
#define SGLK_COMMA ,

#define SGLK_GATE_WARPS(op, dtype, type) \
  SGLK_GATE_WARP(op, dtype, type, 1)     \
  SGLK_GATE_WARP(op, dtype, type, 2)     \
  SGLK_GATE_WARP(op, dtype, type, 4)     \
  SGLK_GATE_WARP(op, dtype, type, 8)     \
  SGLK_GATE_WARP(op, dtype, type, 16)

#define SGLK_GATES(dtype, type)                                     \
  SGLK_GATE_WARPS(topk_softmax, dtype, type)                        \
  SGLK_GATE(topk_softmax, dtype, type, any, topk_softmax_any<type>) \
  SGLK_GATE_WARPS(moe_fused_gate, dtype, type)

SGLK_GATES(bf16, sglk::bf16)
SGLK_GATES(f16, sglk::f16)
SGLK_GATES(f32, float)
