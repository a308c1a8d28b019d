// Filters and samplers of token probabilities: checks, scratch memory, choice and launches.
#include "kernels/sampling.h"

#include <climits>
#include <cmath>

#include "ops/checks.h"
#include "ops/heuristics/sampling.h"
#include "runtime/launch.h"
#include "runtime/registry.h"

extern "C" const unsigned char sglk_fatbin_sampling[];

namespace sglk::sampling {
namespace {

using OptionalTensor = std::optional<Tensor>;

FatBinary& fat_binary() {
  static FatBinary binary("sampling", sglk_fatbin_sampling, kKernelCount, kernel_name);
  return binary;
}

int64_t row_stride(const Tensor& t) { return t.size(0) > 1 ? t.stride(0) : t.size(1); }

// One call: what is filtered by what, into what.
struct Call {
  const char* op;
  const char* input_name;
  const Tensor& input;   // [input_rows, vocabulary]
  const Tensor& output;  // [rows, vocabulary], or [rows] tokens
  bool is_sampler = false, is_logits = false, is_min_p = false;
  bool has_k = false, has_p = false;
  const Tensor* indices = nullptr;
  const Tensor* top_k = nullptr;
  const Tensor* limit = nullptr;  // top_p or min_p
  double top_k_value = 0.0, limit_value = 0.0;
  int64_t seed = 0, offset = 0;
};

// A vector that the kernels read as it is: 1-D, contiguous, on the input's device.
void check_vector(const Call& call, const char* name, const Tensor* tensor, int64_t size, const char* reason,
                  DType dtype) {
  if (tensor == nullptr) return;
  const Argument a{call.op, name, *tensor};
  check_dim(a, 1, "[batch]");
  check_size(a, 0, size, reason);
  check_dtype(a, dtype, "for this argument");
  check_device(a, call.input.device(), "device of the input");
  check_last_stride(a);
}

void check(const Call& call) {
  const Argument input{call.op, call.input_name, call.input}, output{call.op, "output", call.output};
  check_dim(input, 2, "[batch, vocabulary]");
  check_dtype(input, DType::kFloat32, "for this argument");
  check_last_stride(input);
  const int64_t rows = call.input.size(0), vocabulary = call.input.size(1);
  SGLK_CHECK(rows <= INT_MAX / kMaxChunks && vocabulary <= INT_MAX,
             "%s: %s: expected at most 33554431 rows of at most 2147483647, got %s", call.op, call.input_name,
             call.input.shape().c_str());
  if (call.is_sampler) {
    check_vector(call, "output", &call.output, call.output.dim() == 1 ? call.output.size(0) : rows, "",
                 DType::kInt32);
    if (call.indices == nullptr) check_size(output, 0, rows, "rows of the input");
    SGLK_CHECK(vocabulary > 0, "%s: %s.size(1): expected at least 1, got 0", call.op, call.input_name);
    SGLK_CHECK(rows > 0 || call.output.size(0) == 0, "%s: %s.size(0): expected at least 1, got 0", call.op,
               call.input_name);
    check_vector(call, "maybe_indices", call.indices, call.output.size(0), "output.size(0)", DType::kInt32);
  } else {
    check_dim(output, 2, "[batch, vocabulary]");
    check_size(output, 0, rows, "rows of the input");
    check_size(output, 1, vocabulary, "size of the input's rows");
    check_dtype(output, DType::kFloat32, "for this argument");
    check_device(output, call.input.device(), "device of the input");
    check_last_stride(output);
  }
  check_vector(call, "maybe_top_k_arr", call.top_k, rows, "rows of the input", DType::kInt32);
  check_vector(call, call.is_min_p ? "maybe_min_p_arr" : "maybe_top_p_arr", call.limit, rows,
               "rows of the input", DType::kFloat32);
}

// Sections of one allocation, in bytes; what the clear step zeroes comes first.
struct Scratch {
  int64_t counts, masses, clear_end, segments, candidates, size;
};

Scratch scratch_of(const Call& call, int64_t rows, const Choice& choice) {
  static_assert(sizeof(SamplingState) % 16 == 0 && kBins * sizeof(int) % 16 == 0, "cleared in 16 bytes");
  Scratch scratch{};
  int64_t end = rows * int64_t{sizeof(SamplingState)};
  const auto take = [&end](int64_t bytes) { return std::exchange(end, end + bytes); };
  const int64_t shared_rows = choice.chunks > 1 ? rows : 0;  // else a block keeps its histogram to itself
  scratch.counts = take(call.has_k ? shared_rows * kBins * 4 : 0);
  scratch.masses = take(call.has_p ? shared_rows * kBins * 8 : 0);
  scratch.clear_end = end;
  scratch.segments = take(call.is_sampler ? rows * choice.chunks * kWarps * 8 : 0);
  scratch.candidates = take(call.is_min_p ? 0 : rows * choice.capacity * 8);
  scratch.size = end;
  return scratch;
}

int clamp_top_k(double value) {
  return static_cast<int>(std::isnan(value) ? 1 : std::clamp(value, 1.0, 2147483647.0));
}

void run(const Call& call) {
  check(call);
  const Tensor& input = call.input;
  const int64_t rows = call.output.size(0), vocabulary = input.size(1);
  if (rows == 0 || vocabulary == 0) return;

  const DeviceGuard guard(input.device());
  const int32_t device = input.device().index;
  const bool has_aligned_output =
      call.is_sampler || is_aligned(16, 4, call.output.data(), {row_stride(call.output)});
  const bool aligned = is_aligned(16, 4, input.data(), {row_stride(input), vocabulary}) && has_aligned_output;
  const Choice choice = choose(rows, vocabulary, aligned, device_properties(device).multiprocessors);
  const Scratch scratch = scratch_of(call, rows, choice);
  const Tensor memory = Tensor::empty({scratch.size / 8}, DType::kInt64, input.device());
  char* const base = memory.data<char>();

  SamplingParams params{};
  params.input = input.data<float>();
  params.output = call.is_sampler ? nullptr : call.output.data<float>();
  params.tokens = call.is_sampler ? call.output.data<int>() : nullptr;
  params.indices = call.indices != nullptr ? call.indices->data<int>() : nullptr;
  params.top_k = call.top_k != nullptr ? call.top_k->data<int>() : nullptr;
  params.limit = call.limit != nullptr ? call.limit->data<float>() : nullptr;
  params.states = reinterpret_cast<SamplingState*>(base);
  params.counts = call.has_k ? reinterpret_cast<unsigned*>(base + scratch.counts) : nullptr;
  params.masses = call.has_p ? reinterpret_cast<unsigned long*>(base + scratch.masses) : nullptr;
  params.segments = reinterpret_cast<unsigned long*>(base + scratch.segments);
  params.candidates = reinterpret_cast<unsigned long*>(base + scratch.candidates);
  params.input_stride = row_stride(input);
  params.output_stride = call.is_sampler ? 0 : row_stride(call.output);
  params.seed = call.seed;
  params.offset = call.offset;
  params.clear_vectors = scratch.clear_end / 16;
  params.rows = rows;
  params.input_rows = input.size(0);
  params.vocabulary = vocabulary;
  params.chunks = choice.chunks;
  params.segment = choice.segment;
  params.capacity = choice.capacity;
  params.fraction_bits = choice.fraction_bits;
  params.top_k_value = clamp_top_k(call.top_k_value);
  params.limit_value = static_cast<float>(call.limit_value);
  params.is_logits = call.is_logits;

  LaunchConfig config;
  config.block = kThreads;
  config.enable_pdl = true;  // the kernels wait for their predecessor themselves
  const auto launch = [&](Step step) {
    fat_binary().launch(kernel_index(step, kF32, choice.shape), device, config, params);
  };
  config.grid.x = std::min<int64_t>(divide_up(params.clear_vectors, kThreads), 1024);
  launch(kClear);
  config.grid.x = checked_grid(call.op, rows * choice.chunks);
  launch(call.is_min_p ? kMaximum : kHistogram);
  launch(kSelect);
  if (!call.is_sampler) launch(kApply);
}

const Tensor* pointer(const OptionalTensor& tensor) { return tensor.has_value() ? &*tensor : nullptr; }

void top_k_renorm_probs(const Tensor& probs, const Tensor& renorm_probs, const OptionalTensor& top_k,
                        int64_t top_k_value) {
  Call call{"top_k_renorm_probs", "probs", probs, renorm_probs};
  call.has_k = true;
  call.top_k = pointer(top_k);
  call.top_k_value = static_cast<double>(top_k_value);
  run(call);
}

void top_p_renorm_probs(const Tensor& probs, const Tensor& renorm_probs, const OptionalTensor& top_p,
                        double top_p_value) {
  Call call{"top_p_renorm_probs", "probs", probs, renorm_probs};
  call.has_p = true;
  call.limit = pointer(top_p);
  call.limit_value = top_p_value;
  run(call);
}

void top_k_mask_logits(const Tensor& logits, const Tensor& mask_logits, const OptionalTensor& top_k,
                       int64_t top_k_value) {
  Call call{"top_k_mask_logits", "logits", logits, mask_logits};
  call.is_logits = call.has_k = true;
  call.top_k = pointer(top_k);
  call.top_k_value = static_cast<double>(top_k_value);
  run(call);
}

void top_p_sampling_from_probs(const Tensor& probs, const Tensor& output, const OptionalTensor& indices,
                               const OptionalTensor& top_p, double top_p_value, bool /*deterministic*/,
                               int64_t seed, int64_t offset) {
  Call call{"top_p_sampling_from_probs", "probs", probs, output};
  call.is_sampler = call.has_p = true;
  call.indices = pointer(indices);
  call.limit = pointer(top_p);
  call.limit_value = top_p_value;
  call.seed = seed, call.offset = offset;
  run(call);
}

void top_k_top_p_sampling_from_probs(const Tensor& probs, const Tensor& output, const OptionalTensor& indices,
                                     const OptionalTensor& top_k, double top_k_value,
                                     const OptionalTensor& top_p, double top_p_value, bool /*deterministic*/,
                                     int64_t seed, int64_t offset) {
  Call call{"top_k_top_p_sampling_from_probs", "probs", probs, output};
  call.is_sampler = call.has_k = call.has_p = true;
  call.indices = pointer(indices);
  call.top_k = pointer(top_k);
  call.top_k_value = top_k_value;
  call.limit = pointer(top_p);
  call.limit_value = top_p_value;
  call.seed = seed, call.offset = offset;
  run(call);
}

void min_p_sampling_from_probs(const Tensor& probs, const Tensor& output, const OptionalTensor& indices,
                               const OptionalTensor& min_p, double min_p_value, bool /*deterministic*/,
                               int64_t seed, int64_t offset) {
  Call call{"min_p_sampling_from_probs", "probs", probs, output};
  call.is_sampler = call.is_min_p = true;
  call.indices = pointer(indices);
  call.limit = pointer(min_p);
  call.limit_value = min_p_value;
  call.seed = seed, call.offset = offset;
  run(call);
}

}  // namespace

// Upstream's schemas, with a seed and an offset of Philox in place of the generator.
SGLK_OP(
    "top_k_renorm_probs(Tensor probs, Tensor(a!) renorm_probs, Tensor? maybe_top_k_arr, int top_k_val) -> ()",
    top_k_renorm_probs);
SGLK_OP(
    "top_p_renorm_probs(Tensor probs, Tensor(a!) renorm_probs, Tensor? maybe_top_p_arr, float top_p_val) -> "
    "()",
    top_p_renorm_probs);
SGLK_OP(
    "top_k_mask_logits(Tensor logits, Tensor(a!) mask_logits, Tensor? maybe_top_k_arr, int top_k_val) -> ()",
    top_k_mask_logits);
SGLK_OP(
    "top_p_sampling_from_probs(Tensor probs, Tensor(a!) output, Tensor? maybe_indices, Tensor? "
    "maybe_top_p_arr, float top_p_val, bool deterministic, int philox_seed, int philox_offset) -> ()",
    top_p_sampling_from_probs);
SGLK_OP(
    "top_k_top_p_sampling_from_probs(Tensor probs, Tensor(a!) output, Tensor? maybe_indices, Tensor? "
    "maybe_top_k_arr, float top_k_val, Tensor? maybe_top_p_arr, float top_p_val, bool deterministic, int "
    "philox_seed, int philox_offset) -> ()",
    top_k_top_p_sampling_from_probs);
SGLK_OP(
    "min_p_sampling_from_probs(Tensor probs, Tensor(a!) output, Tensor? maybe_indices, Tensor? "
    "maybe_min_p_arr, float min_p_val, bool deterministic, int philox_seed, int philox_offset) -> ()",
    min_p_sampling_from_probs);

}  // namespace sglk::sampling
