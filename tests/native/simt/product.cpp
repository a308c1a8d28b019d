// One product by a kernel of marlin_gemm.cu or marlin_gemm_sm90.cuh on the GPU of simt.h, against double.
//
// usage: product KERNEL M N K GROUP HAS_ZEROS MULTIPROCESSORS SEED
//
//   GROUP            rows of a group, with act-order on average; 0: a single group
//   MULTIPROCESSORS  of the GPU: the most blocks among which the work is cut
//
// Prints the largest error, as a share of what rounding allows. Exit code: 0, or 1 where that is more than 1,
// or a counter of arrivals is left.
#include <dlfcn.h>

#include <cmath>
#include <random>
#include <string>

#define __CUDA_ARCH_FEAT_SM90_ALL
#include "marlin_gemm.cu"
#include "ops/heuristics/marlin_gemm.h"

namespace {

using namespace sglk::marlin_gemm;

struct Problem {
  int m, n, k, group;
  bool has_zeros;
  int multiprocessors, seed;

  int groups() const { return group == 0 ? 1 : k / group; }
};

std::size_t at(int row, int column, int columns) {
  return static_cast<std::size_t>(row) * static_cast<std::size_t>(columns) + static_cast<std::size_t>(column);
}

// Of a vector of which 16 bytes may be read from any element on.
template <class T>
const T* padded(std::vector<T>& x) {
  x.resize(x.size() + 16);
  return x.data();
}

// --- Marlin's layouts, as python/sgl_kernel/_marlin_gemm.py describes them ---

constexpr int kOrder4[] = {0, 2, 4, 6, 1, 3, 5, 7}, kOrder8[] = {0, 2, 1, 3};

// A lane has, of each 16 columns of a tile of 16 rows × 64 columns, rows 2 (l % 4) + {0, 1, 8, 9} of the
// columns l / 4 and l / 4 + 8.
std::vector<std::uint32_t> pack_weights(const std::vector<std::uint8_t>& q, int k, int n, int bits) {
  std::vector<std::uint32_t> words;
  const int per_word = 32 / bits;
  for (int row = 0; row < k; row += 16) {
    for (int column = 0; column < n; column += 64) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int first = 0; first < 32; first += per_word) {
          std::uint32_t word = 0;
          for (int i = 0; i < per_word; ++i) {
            const int v = first + (bits == 4 ? kOrder4 : kOrder8)[i], u = v / 8;
            const int r = row + lane % 4 * 2 + v % 2 + v / 2 % 2 * 8;
            const int c = column + u * 16 + lane / 4 + v / 4 % 2 * 8;
            word |= std::uint32_t{q[at(r, c, n)]} << i * bits;
          }
          words.push_back(word);
        }
      }
    }
  }
  return words;
}

// The column whose scale is at a place of a row.
int permuted_column(int place, bool is_single_group) {
  constexpr int kOf[] = {0, 1, 8, 9, 16, 17, 24, 25};
  if (is_single_group) return place / 32 * 32 + place % 32 / 8 * 2 + kOf[place % 8];
  return place / 64 * 64 + place % 64 / 8 + place % 8 * 8;
}

template <class T>
std::vector<T> permute_scales(const std::vector<T>& scales, const Problem& p) {
  std::vector<T> permuted(scales.size());
  for (int g = 0; g < p.groups(); ++g) {
    for (int i = 0; i < p.n; ++i)
      permuted[at(g, i, p.n)] = scales[at(g, permuted_column(i, p.group == 0), p.n)];
  }
  return permuted;
}

std::vector<std::uint32_t> pack_zeros(const std::vector<std::uint8_t>& zeros, const Problem& p) {
  std::vector<std::uint32_t> words;
  for (int g = 0; g < p.groups(); ++g) {
    for (int place = 0; place < p.n; place += 8) {
      std::uint32_t word = 0;
      for (int i = 0; i < 8; ++i) {
        word |= std::uint32_t{zeros[at(g, permuted_column(place + kOrder4[i], false), p.n)]} << i * 4;
      }
      words.push_back(word);
    }
  }
  return words;
}

// --- the product ---

double e4m3(int byte) {
  const int exponent = byte >> 3 & 15, mantissa = byte & 7;
  const double size = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return byte < 128 ? size : -size;
}

// A kernel, and how it is launched.
struct Kernel {
  WeightType weight;
  bool is_act_order;
  Choice choice;
  std::function<void(const Params&)> run;
};

template <class Params>
auto entry_point(const std::string& name) {
  return reinterpret_cast<void (*)(Params)>(dlsym(RTLD_DEFAULT, name.c_str()));
}

Kernel generic_kernel(int index, const Problem& p) {
  const Shape& shape = kShapes[index % kShapeCount];
  return {shape.weight, shape.is_act_order, arrange(index % kShapeCount, p.m, p.n, p.k, p.multiprocessors),
          entry_point<Params>(kernel_name(index))};
}

TensorMap map_of(const BoxedMatrix& matrix) {
  static_assert(sizeof(sglk::BoxMap) <= sizeof(TensorMap));
  const sglk::BoxMap box{matrix.data,     matrix.row_bytes,   matrix.rows,          matrix.columns,
                         matrix.box_rows, matrix.box_columns, matrix.element_bytes, matrix.is_swizzled};
  TensorMap map{};
  std::memcpy(&map, &box, sizeof box);
  return map;
}

Kernel sm90_kernel(int index, const Problem& p) {
  const int shape = (index - 2 * kShapeCount) % kSm90ShapeCount;
  const Sm90Tile& tile = kSm90Shapes[shape].tile;
  const auto run = [kernel = entry_point<Sm90Params>(kernel_name(index)), tile](const Params& params) {
    const Sm90Matrices matrices = sm90_matrices(params, tile);
    kernel({map_of(matrices.tokens), map_of(matrices.weights), map_of(matrices.scales),
            map_of(matrices.zeros), params});
  };
  return {kUint4, false, arrange_sm90(shape, p.m, p.n, p.k, p.multiprocessors), run};
}

template <class T>
int check(const Kernel& kernel, const Problem& p) {
  const int bit_count = bits(kernel.weight);
  std::mt19937 random(static_cast<unsigned>(p.seed));
  std::normal_distribution<float> normal;
  std::vector<std::uint8_t> q(at(p.k, 0, p.n));
  std::vector<std::uint8_t> z(at(p.groups(), 0, p.n), static_cast<std::uint8_t>(1 << (bit_count - 1)));
  std::vector<T> a(at(p.m, 0, p.k)), scales(z.size()), out(at(p.m, 0, p.n));
  std::vector<int> group_of(static_cast<std::size_t>(p.k));
  const bool is_float8 =
      kernel.weight == kFloat8;  // whose scales are multiplied, see sgl_kernel.gptq_marlin_gemm
  const double factor = !is_float8 ? 1 : sglk::is_bf16<T> ? 0x1p120 : 0x1p8;
  for (int row = 0; row < p.k; ++row) {
    group_of[static_cast<std::size_t>(row)] = kernel.is_act_order
                                                  ? static_cast<int>(random() % unsigned(p.groups()))
                                              : p.group == 0 ? 0
                                                             : row / p.group;
  }
  for (auto& x : q) x = static_cast<std::uint8_t>(random() % (is_float8 ? 127u : 1u << bit_count));
  for (auto& x : z) x = p.has_zeros ? static_cast<std::uint8_t>(random() % 16) : x;
  for (auto& x : a) x = sglk::from_float<T>(normal(random));
  for (auto& x : scales) {
    x = sglk::from_float<T>(static_cast<float>(factor * (0.001 + 0.01 * std::abs(double{normal(random)}))));
  }

  const Choice& choice = kernel.choice;
  const int blocks = choice.partition.blocks;
  auto words = pack_weights(q, p.k, p.n, bit_count), zero_words = pack_zeros(z, p);
  auto permuted = permute_scales(scales, p);
  std::vector<float> partial(at(blocks, 0, choice.tokens * choice.columns), NAN);
  std::vector<int> arrivals(static_cast<std::size_t>(blocks));
  Params params{};
  params.a = padded(a);
  params.weight = padded(words);
  params.scales = padded(permuted);
  params.zeros = p.has_zeros ? padded(zero_words) : nullptr;
  params.g_idx = kernel.is_act_order ? group_of.data() : nullptr;
  params.out = out.data();
  params.partial = partial.data();
  params.arrivals = arrivals.data();
  params.a_stride = p.k;
  params.out_stride = p.n;
  params.m = p.m, params.n = p.n, params.k = p.k;
  params.groups = p.groups();
  params.group_shift = p.group == 0 ? 30 : std::countr_zero(static_cast<unsigned>(p.group / kMinGroup));
  params.tiles = choice.tiles;
  params.partition = choice.partition;
  simt::run(blocks, choice.threads, choice.shared_bytes, [&] { kernel.run(params); });

  const double epsilon = sglk::is_bf16<T> ? 0x1p-7 : 0x1p-10;
  double worst = 0;
  for (int i = 0; i < p.m; ++i) {
    for (int column = 0; column < p.n; ++column) {
      double expected = 0, magnitude = 0;
      for (int row = 0; row < p.k; ++row) {
        const std::size_t scale = at(group_of[static_cast<std::size_t>(row)], column, p.n);
        const int byte = q[at(row, column, p.n)];
        const double weight = is_float8 ? e4m3(byte) : byte - z[scale];
        const double x = double{sglk::to_float(a[at(i, row, p.k)])} * weight *
                         (double{sglk::to_float(scales[scale])} / factor);
        expected += x, magnitude += std::abs(x);
      }
      const double allowed = (0.5 * epsilon + 0x1p-20) * magnitude + epsilon * std::abs(expected);
      const double error = std::abs(double{sglk::to_float(out[at(i, column, p.n)])} - expected);
      worst = std::isnan(error) ? INFINITY : std::max(worst, error / allowed);
    }
  }
  const bool is_clean = std::all_of(arrivals.begin(), arrivals.end(), [](int x) { return x == 0; });
  std::printf("%d blocks: %.3f of the error allowed%s\n", blocks, worst,
              is_clean ? "" : "; arrivals are left");
  return worst <= 1 && is_clean ? 0 : 1;
}

}  // namespace

int main(int, char** arguments) {
  const std::string name = arguments[1];
  const auto number = [&](int i) { return std::atoi(arguments[i]); };
  const Problem problem{number(2), number(3), number(4), number(5), number(6) != 0, number(7), number(8)};
  for (int index = 0; index < kKernelCount; ++index) {
    if (kernel_name(index) != name) continue;
    const bool is_sm90 = index >= 2 * kShapeCount;
    const Kernel kernel = is_sm90 ? sm90_kernel(index, problem) : generic_kernel(index, problem);
    const bool is_bf16 = is_sm90 ? index < 2 * kShapeCount + kSm90ShapeCount : index < kShapeCount;
    return is_bf16 ? check<sglk::bf16>(kernel, problem) : check<sglk::f16>(kernel, problem);
  }
  std::printf("%s: no such kernel\n", name.c_str());
  return 2;
}
