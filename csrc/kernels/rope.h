// Parameters of the rope kernels, shared by host and device.
#pragma once

namespace sglk {

// [tokens, heads, head_size], each head contiguous. Strides are in elements.
struct RopeHeads {
  void* data;
  long token_stride;
  long head_stride;
};

struct RopeParams {
  RopeHeads q_in, k_in;        // q_heads and k_heads heads
  RopeHeads q_out, k_out;      // may be q_in and k_in
  RopeHeads k_cache, v_cache;  // [slots, k_heads, head_size]; data null unless the cache is written too
  RopeHeads v_in;              // k_heads heads; data null likewise
  const float* cos_sin;        // [positions, rotary_dim]: cosines, then sines; contiguous
  const void* position;        // [tokens] int32 or int64
  const long* cache_slot;      // [tokens]; null unless the cache is written
  long max_position;           // rows of cos_sin; a position outside gives NaN
  long cache_slots;            // rows of the caches; a slot outside is not written
  int q_heads, k_heads;
  int head_size;
  int rotary_dim;       // even, at most head_size
  int lanes;            // threads that share a head: rotary_dim / 2 / pairs of a thread
  int heads_per_block;  // heads of a token that one block rotates; blockIdx.y counts the blocks of a token
  bool is_position_64;
  bool is_in_place;  // the dimensions from rotary_dim on are where they belong already
};

}  // namespace sglk
