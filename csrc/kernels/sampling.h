// Parameters and scratch memory of the sampling kernels, shared by host and device.
#pragma once

namespace sglk {

// What the steps of one call hand to each other about one output row. Cleared before the first step.
struct alignas(64) SamplingState {
  unsigned long kept;             // fixed-point mass of what is kept whatever the candidates decide
  double mass_above;              // of the keys from `high` on
  unsigned int count_above;       // number of keys from `high` on
  unsigned int histogram_blocks;  // blocks that have finished the first step
  unsigned int select_blocks;     // blocks that have finished the second step
  unsigned int candidates;        // keys in [low, high), also those that found no room in the list
  unsigned int max_key;
  unsigned int max_exponent;  // biased; the unit of fixed-point mass follows from it
  unsigned int low, high;     // the threshold is a key in [low, high); low == high: it is low
  unsigned int threshold;     // the least key that is kept
  float divisor;              // kept probability
};

// Strides are in elements. Every row is contiguous.
struct SamplingParams {
  const float* input;     // [input_rows, vocabulary] probabilities or logits
  float* output;          // [rows, vocabulary]; null for samplers
  int* tokens;            // [rows]; null unless a sampler
  const int* indices;     // [rows] rows of the input; null: row i for output i
  const int* top_k;       // [input_rows]; null: top_k_value
  const float* limit;     // [input_rows] top_p or min_p; null: limit_value
  SamplingState* states;  // [rows]
  unsigned int* counts;   // [rows, 2048] keys by their first digit; null unless top-k; used where chunks > 1
  unsigned long* masses;  // [rows, 2048] sums of their 24-bit significands; null unless top-p; likewise
  unsigned long* segments;    // [rows, 16 · chunks] fixed-point mass that is kept for sure; samplers only
  unsigned long* candidates;  // [rows, capacity] key · 2^32 + segment
  long input_stride;
  long output_stride;
  unsigned long seed;
  unsigned long offset;
  long clear_vectors;  // of 16 bytes, from `states` on
  int rows;
  int input_rows;
  int vocabulary;
  int chunks;         // blocks that share a row
  int segment;        // elements of a warp, a multiple of 128
  int capacity;       // of a row's list of candidates
  int fraction_bits;  // of fixed-point mass, below the last bit of the largest probability
  int top_k_value;
  float limit_value;
  bool is_logits;
};

}  // namespace sglk
