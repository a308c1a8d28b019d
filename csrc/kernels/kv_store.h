// Parameters of the kv_store kernels, shared by host and device.
#pragma once

namespace sglk {

// Strides are in elements (in bytes for store_kv_cache, which only copies). Every row is contiguous.
struct KvStoreParams {
  void* k_cache;         // [slots, width]
  void* v_cache;         // [slots, width]
  const void* k;         // [tokens, width]
  const void* v;         // [tokens, width]
  const float* k_scale;  // [1]; null where nothing is scaled
  const float* v_scale;  // [1]; likewise
  const void* loc;       // [tokens] int32 or int64
  long k_cache_stride, v_cache_stride;
  long k_stride, v_stride;
  long tokens;
  long k_slots, v_slots;  // a row loc · mult + offset outside is not written
  long mult, offset;
  int k_units, v_units;  // vectors, or single elements, of a row
  int lanes_log2;        // 2^lanes_log2 threads share a token
  bool is_loc_64;
};

}  // namespace sglk
