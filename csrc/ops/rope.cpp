// apply_rope_pos_ids_cos_sin_cache: checks, choice and launch.
#include "kernels/rope.h"

#include <climits>
#include <optional>

#include "ops/checks.h"
#include "ops/heuristics/rope.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_rope[];

namespace sglk::rope {
namespace {

constexpr const char* kOp = "apply_rope_pos_ids_cos_sin_cache";

FatBinary& fat_binary() {
  static FatBinary binary("rope", sglk_fatbin_rope, kKernelCount, kernel_name);
  return binary;
}

// `other` is [rows, heads, head_size] like `like`; rows are tokens, or slots of a cache (any number).
void check_heads(const char* name, const Tensor& other, const Tensor& like, const char* reason,
                 bool has_tokens) {
  const Argument a{kOp, name, other};
  check_dim(a, 3, "[tokens, heads, head_size]");
  if (has_tokens) check_size(a, 0, like.size(0), reason);
  check_size(a, 1, like.size(1), reason);
  check_size(a, 2, like.size(2), reason);
  check_dtype(a, like.dtype(), reason);
  check_device(a, like.device(), reason);
  check_last_stride(a);
}

RopeHeads heads(const Tensor& t) { return {t.data(), t.stride(0), t.stride(1)}; }
RopeHeads heads(const std::optional<Tensor>& t) { return t ? heads(*t) : RopeHeads{}; }

bool is_vectorized(const RopeHeads& h) { return is_aligned(16, 2, h.data, {h.token_stride, h.head_stride}); }

void check_cache(const Tensor& k, const std::optional<Tensor>& v, const std::optional<Tensor>& k_buffer,
                 const std::optional<Tensor>& v_buffer, const std::optional<Tensor>& kv_cache_loc) {
  const int given = v.has_value() + k_buffer.has_value() + v_buffer.has_value() + kv_cache_loc.has_value();
  SGLK_CHECK(given == 0 || given == 4,
             "%s: v, k_buffer, v_buffer, kv_cache_loc: expected all four or none, got %d of them", kOp,
             given);
  if (given == 0) return;
  check_heads("v", *v, k, "k's", true);
  check_heads("k_buffer", *k_buffer, k, "k's", false);
  check_heads("v_buffer", *v_buffer, k, "k's", false);
  check_size({kOp, "v_buffer", *v_buffer}, 0, k_buffer->size(0), "k_buffer.size(0)");
  const Argument loc{kOp, "kv_cache_loc", *kv_cache_loc};
  check_dim(loc, 1, "[tokens]");
  check_size(loc, 0, k.size(0), "k.size(0)");
  check_dtype(loc, DType::kInt64, "a row of the buffers for each token");
  check_device(loc, k.device(), "device of q");
  check_last_stride(loc);
}

void apply_rope(const Tensor& q, const Tensor& k, const Tensor& q_rope, const Tensor& k_rope,
                const Tensor& cos_sin_cache, const Tensor& pos_ids, bool interleave, bool enable_pdl,
                int64_t /*cuda_stream: torch's current stream is used*/, const std::optional<Tensor>& v,
                const std::optional<Tensor>& k_buffer, const std::optional<Tensor>& v_buffer,
                const std::optional<Tensor>& kv_cache_loc) {
  check_dim({kOp, "q", q}, 3, "[tokens, heads, head_size]");
  check_dtype_in({kOp, "q", q}, {DType::kFloat16, DType::kBFloat16});
  check_last_stride({kOp, "q", q});
  const Argument k_arg{kOp, "k", k};
  check_dim(k_arg, 3, "[tokens, heads, head_size]");
  check_size(k_arg, 0, q.size(0), "q.size(0)");
  check_size(k_arg, 2, q.size(2), "q.size(2)");
  check_dtype(k_arg, q.dtype(), "dtype of q");
  check_device(k_arg, q.device(), "device of q");
  check_last_stride(k_arg);
  check_heads("q_rope", q_rope, q, "q's", true);
  check_heads("k_rope", k_rope, k, "k's", true);
  const Argument cache{kOp, "cos_sin_cache", cos_sin_cache}, positions{kOp, "pos_ids", pos_ids};
  check_dim(cache, 2, "[max_position, rotary_dim]");
  check_dtype(cache, DType::kFloat32, "cosines and sines");
  check_device(cache, q.device(), "device of q");
  check_last_stride(cache);
  const int64_t tokens = q.size(0), head_size = q.size(2), rotary_dim = cos_sin_cache.size(1);
  SGLK_CHECK(
      rotary_dim >= 2 && rotary_dim % 2 == 0 && rotary_dim <= head_size && rotary_dim <= kMaxRotaryDim,
      "%s: cos_sin_cache.size(1): expected an even rotary_dim of 2 to head_size (%ld), at most %d, got %ld",
      kOp, head_size, kMaxRotaryDim, rotary_dim);
  SGLK_CHECK(cos_sin_cache.size(0) <= 1 || cos_sin_cache.stride(0) == rotary_dim,
             "%s: cos_sin_cache.stride(0): expected %ld (contiguous), got %ld", kOp, rotary_dim,
             cos_sin_cache.stride(0));
  check_dim(positions, 1, "[tokens]");
  check_size(positions, 0, tokens, "q.size(0)");
  check_dtype_in(positions, {DType::kInt32, DType::kInt64});
  check_device(positions, q.device(), "device of q");
  check_last_stride(positions);
  check_cache(k, v, k_buffer, v_buffer, kv_cache_loc);
  const int64_t all_heads = q.size(1) + k.size(1);
  SGLK_CHECK(tokens <= INT_MAX && head_size <= 65536 && all_heads <= 65535,
             "%s: q: expected fewer than 2^31 tokens, 2^16 heads and a head_size of at most 65536, got %s",
             kOp, q.shape().c_str());
  SGLK_CHECK(all_heads * head_size <= INT_MAX,
             "%s: q: expected a token of fewer than 2^31 elements, k's included, got %s", kOp,
             q.shape().c_str());
  if (tokens == 0 || all_heads == 0) return;

  const DeviceGuard guard(q.device());
  RopeParams params{};
  params.q_in = heads(q);
  params.k_in = heads(k);
  params.q_out = heads(q_rope);
  params.k_out = heads(k_rope);
  params.k_cache = heads(k_buffer);
  params.v_cache = heads(v_buffer);
  params.v_in = heads(v);
  const bool aligned = is_vectorized(params.q_in) && is_vectorized(params.k_in) &&
                       is_vectorized(params.q_out) && is_vectorized(params.k_out) &&
                       is_vectorized(params.k_cache) && is_vectorized(params.v_cache) &&
                       is_vectorized(params.v_in) && is_aligned(16, 4, cos_sin_cache.data(), {}) &&
                       rotary_dim % 16 == 0 && head_size % 8 == 0;
  const int32_t device = q.device().index;
  const Choice choice = choose(tokens, static_cast<int>(all_heads), static_cast<int>(rotary_dim), aligned,
                               device_properties(device).multiprocessors);
  params.cos_sin = cos_sin_cache.data<const float>();
  params.position = pos_ids.data();
  params.cache_slot = kv_cache_loc ? kv_cache_loc->data<const long>() : nullptr;
  params.max_position = cos_sin_cache.size(0);
  params.cache_slots = k_buffer ? k_buffer->size(0) : 0;
  params.q_heads = static_cast<int>(q.size(1));
  params.k_heads = static_cast<int>(k.size(1));
  params.head_size = static_cast<int>(head_size);
  params.rotary_dim = static_cast<int>(rotary_dim);
  params.lanes = choice.lanes;
  params.heads_per_block = choice.heads_per_block;
  params.is_position_64 = pos_ids.dtype() == DType::kInt64;
  params.is_in_place = q.data() == q_rope.data() && k.data() == k_rope.data();
  LaunchConfig config;
  config.grid = {checked_grid(kOp, tokens), static_cast<uint32_t>(choice.head_blocks), 1};
  config.block = choice.threads;
  config.enable_pdl = enable_pdl;
  const int kernel = kernel_index(interleave ? kInterleaved : kNeox,
                                  q.dtype() == DType::kBFloat16 ? kBf16 : kF16, choice.shape);
  fat_binary().launch(kernel, device, config, params);
}

}  // namespace

SGLK_OP(
    "apply_rope_pos_ids_cos_sin_cache(Tensor q, Tensor k, Tensor(a!) q_rope, Tensor(b!) k_rope, Tensor "
    "cos_sin_cache, "
    "Tensor pos_ids, bool interleave, bool enable_pdl, int cuda_stream, Tensor? v, Tensor(c!)? k_buffer, "
    "Tensor(d!)? v_buffer, Tensor? kv_cache_loc) -> ()",
    apply_rope);

}  // namespace sglk::rope
