// store_kv_cache, downcast_fp8: checks, choice and launch.
#include "kernels/kv_store.h"

#include <algorithm>
#include <climits>

#include "ops/checks.h"
#include "ops/heuristics/kv_store.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_kv_store[];

namespace sglk::kv_store {
namespace {

FatBinary& fat_binary() {
  static FatBinary binary("kv_store", sglk_fatbin_kv_store, kKernelCount, kernel_name);
  return binary;
}

int size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
    case DType::kUInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
    case DType::kUInt32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kInt16:
      return 2;
    default:
      return 1;
  }
}

// Elements of a row: all dimensions but the first.
int64_t width_of(const Tensor& t) {
  int64_t width = 1;
  for (int64_t d = 1; d < t.dim(); ++d) width *= t.size(d);
  return width;
}

int64_t row_stride(const Tensor& t) { return t.size(0) > 1 ? t.stride(0) : width_of(t); }

void check_rows(const Argument& a) {
  SGLK_CHECK(a.tensor.dim() >= 2, "%s: %s: expected [rows, ...], got %ld-D %s", a.op, a.name, a.tensor.dim(),
             a.tensor.shape().c_str());
  int64_t expected = 1;
  for (int64_t d = a.tensor.dim() - 1; d >= 1 && a.tensor.numel() > 0; --d) {
    SGLK_CHECK(a.tensor.size(d) == 1 || a.tensor.stride(d) == expected,
               "%s: %s: expected contiguous rows, got %s with other strides", a.op, a.name,
               a.tensor.shape().c_str());
    expected *= a.tensor.size(d);
  }
}

// The cache of `rows`: as wide, on the same device.
void check_cache(const Argument& cache, const Argument& rows) {
  check_rows(cache);
  const int64_t width = width_of(rows.tensor);
  SGLK_CHECK(width_of(cache.tensor) == width, "%s: %s: expected rows of %ld elements (those of %s), got %s",
             cache.op, cache.name, width, rows.name, cache.tensor.shape().c_str());
  check_device(cache, rows.tensor.device(), "device of the rows");
  SGLK_CHECK(width <= INT_MAX / 8, "%s: %s: expected rows below 268435456 elements, got %ld", rows.op,
             rows.name, width);
}

void check_loc(const Argument& loc, const Tensor& k) {
  check_dim(loc, 1, "[tokens]");
  check_size(loc, 0, k.size(0), "k.size(0)");
  check_dtype_in(loc, {DType::kInt32, DType::kInt64});
  check_device(loc, k.device(), "device of k");
  check_last_stride(loc);
}

void launch(const char* op, Op which, KvStoreParams& params, bool is_vector, int32_t device) {
  const Choice choice = choose(params.tokens, std::max(params.k_units, params.v_units));
  params.lanes_log2 = choice.lanes_log2;
  LaunchConfig config;
  config.grid.x = checked_grid(op, choice.blocks);
  config.block = kMaxThreads;
  config.enable_pdl = true;  // the kernels wait for their predecessor themselves
  fat_binary().launch(kernel_index(which, is_vector ? 0 : 1), device, config, params);
}

void store_kv_cache(const Tensor& k_cache, const Tensor& v_cache, const Tensor& out_loc, const Tensor& k,
                    const Tensor& v) {
  constexpr const char* op = "store_kv_cache";
  const Argument key{op, "k", k}, value{op, "v", v};
  check_rows(key);
  check_rows(value);
  check_size(value, 0, k.size(0), "k.size(0)");
  check_device(value, k.device(), "device of k");
  check_cache({op, "k_cache", k_cache}, key);
  check_cache({op, "v_cache", v_cache}, value);
  SGLK_CHECK(k.dtype() != DType::kOther && v.dtype() != DType::kOther,
             "%s: k, v: expected a dtype that this library knows, got another", op);
  check_dtype({op, "k_cache", k_cache}, k.dtype(), "dtype of k");
  check_dtype({op, "v_cache", v_cache}, v.dtype(), "dtype of v");
  check_loc({op, "out_loc", out_loc}, k);
  const int64_t tokens = k.size(0);
  const int64_t k_size = size_of(k.dtype()), v_size = size_of(v.dtype());
  const int64_t k_width = width_of(k) * k_size, v_width = width_of(v) * v_size;
  if (tokens == 0 || k_width + v_width == 0) return;

  const DeviceGuard guard(k.device());
  KvStoreParams params{k_cache.data(),
                       v_cache.data(),
                       k.data(),
                       v.data(),
                       nullptr,
                       nullptr,
                       out_loc.data(),
                       row_stride(k_cache) * k_size,
                       row_stride(v_cache) * v_size,
                       row_stride(k) * k_size,
                       row_stride(v) * v_size,
                       tokens,
                       k_cache.size(0),
                       v_cache.size(0),
                       1,
                       0,
                       0,
                       0,
                       0,
                       out_loc.dtype() == DType::kInt64};
  const bool aligned = is_aligned(16, 1, params.k, {params.k_stride, k_width}) &&
                       is_aligned(16, 1, params.v, {params.v_stride, v_width}) &&
                       is_aligned(16, 1, params.k_cache, {params.k_cache_stride}) &&
                       is_aligned(16, 1, params.v_cache, {params.v_cache_stride});
  params.k_units = static_cast<int>(aligned ? k_width / 16 : k_width);
  params.v_units = static_cast<int>(aligned ? v_width / 16 : v_width);
  launch(op, kStore, params, aligned, k.device().index);
}

void downcast_fp8(const Tensor& k, const Tensor& v, const Tensor& k_out, const Tensor& v_out,
                  const Tensor& k_scale, const Tensor& v_scale, const Tensor& loc, int64_t mult,
                  int64_t offset, int64_t /*cuda_stream: torch's current stream is used*/) {
  constexpr const char* op = "downcast_fp8";
  const Argument key{op, "k", k}, value{op, "v", v};
  check_rows(key);
  check_rows(value);
  check_dtype_in(key, {DType::kBFloat16, DType::kFloat16});
  check_dtype(value, k.dtype(), "dtype of k");
  check_size(value, 0, k.size(0), "k.size(0)");
  check_device(value, k.device(), "device of k");
  check_cache({op, "k_out", k_out}, key);
  check_cache({op, "v_out", v_out}, value);
  check_dtype_in({op, "k_out", k_out}, {DType::kFloat8E4M3, DType::kUInt8});
  check_dtype_in({op, "v_out", v_out}, {DType::kFloat8E4M3, DType::kUInt8});
  for (const Argument& scale : {Argument{op, "k_scale", k_scale}, Argument{op, "v_scale", v_scale}}) {
    check_dtype(scale, DType::kFloat32, "a scale");
    check_device(scale, k.device(), "device of k");
    SGLK_CHECK(scale.tensor.numel() == 1, "%s: %s: expected one element, got %s", op, scale.name,
               scale.tensor.shape().c_str());
  }
  check_loc({op, "loc", loc}, k);
  const int64_t tokens = k.size(0), k_width = width_of(k), v_width = width_of(v);
  if (tokens == 0 || k_width + v_width == 0) return;

  const DeviceGuard guard(k.device());
  KvStoreParams params{k_out.data(),
                       v_out.data(),
                       k.data(),
                       v.data(),
                       k_scale.data<float>(),
                       v_scale.data<float>(),
                       loc.data(),
                       row_stride(k_out),
                       row_stride(v_out),
                       row_stride(k),
                       row_stride(v),
                       tokens,
                       k_out.size(0),
                       v_out.size(0),
                       mult,
                       offset,
                       0,
                       0,
                       0,
                       loc.dtype() == DType::kInt64};
  const bool aligned = is_aligned(16, 2, params.k, {params.k_stride, k_width}) &&
                       is_aligned(16, 2, params.v, {params.v_stride, v_width}) &&
                       is_aligned(8, 1, params.k_cache, {params.k_cache_stride}) &&
                       is_aligned(8, 1, params.v_cache, {params.v_cache_stride});
  params.k_units = static_cast<int>(aligned ? k_width / 8 : k_width);
  params.v_units = static_cast<int>(aligned ? v_width / 8 : v_width);
  launch(op, k.dtype() == DType::kBFloat16 ? kDowncastBf16 : kDowncastF16, params, aligned, k.device().index);
}

}  // namespace

SGLK_OP("store_kv_cache(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor out_loc, Tensor k, Tensor v) -> ()",
        store_kv_cache);
SGLK_OP(
    "downcast_fp8(Tensor k, Tensor v, Tensor(a!) k_out, Tensor(b!) v_out, Tensor k_scale, Tensor v_scale, "
    "Tensor loc, int mult, int offset, int cuda_stream) -> ()",
    downcast_fp8);

}  // namespace sglk::kv_store
