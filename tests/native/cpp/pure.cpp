// Opens the pure functions of csrc to the tests.
#include "bindings.h"
#include "kernels/activation.h"
#include "kernels/awq.h"
#include "kernels/gptq.h"
#include "kernels/grammar.h"
#include "kernels/kv_store.h"
#include "kernels/marlin_gemm.h"
#include "kernels/marlin_repack.h"
#include "kernels/merge.h"
#include "kernels/moe_align.h"
#include "kernels/moe_gate.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/sampling.h"
#include "ops/checks.h"
#include "ops/heuristics/activation.h"
#include "ops/heuristics/awq.h"
#include "ops/heuristics/gptq.h"
#include "ops/heuristics/grammar.h"
#include "ops/heuristics/kv_store.h"
#include "ops/heuristics/marlin_gemm.h"
#include "ops/heuristics/marlin_repack.h"
#include "ops/heuristics/merge.h"
#include "ops/heuristics/moe_align.h"
#include "ops/heuristics/moe_gate.h"
#include "ops/heuristics/norm.h"
#include "ops/heuristics/rope.h"
#include "ops/heuristics/sampling.h"

fake::TensorSpec spec_of(const py::handle& tensor) {
  return {
      tensor.attr("sizes").cast<std::vector<int64_t>>(), tensor.attr("strides").cast<std::vector<int64_t>>(),
      tensor.attr("dtype_code").cast<int32_t>(),         tensor.attr("device_type").cast<int32_t>(),
      tensor.attr("device_index").cast<int32_t>(),       tensor.attr("address").cast<uintptr_t>()};
}

py::dict view_to_python(const probes::View& view) {
  py::dict result;
  result["sizes"] = view.sizes;
  result["strides"] = view.strides;
  result["numel"] = view.numel;
  result["shape"] = view.shape;
  result["dtype"] = view.dtype;
  result["device"] = view.device;
  result["address"] = view.address;
  return result;
}

namespace {

sglk::DType dtype_named(const std::string& wanted) {
  for (int i = 0; i < static_cast<int>(sglk::DType::kOther); ++i) {
    if (wanted == sglk::name(static_cast<sglk::DType>(i))) return static_cast<sglk::DType>(i);
  }
  return sglk::DType::kOther;
}

sglk::Tensor tensor_of(const py::handle& tensor) { return sglk::Tensor(fake::new_tensor(spec_of(tensor))); }

sglk::Tensor empty(const std::vector<int64_t>& n, const std::string& dtype, sglk::Device device) {
  const auto make = [&](std::initializer_list<int64_t> sizes) {
    return sglk::Tensor::empty(sizes, dtype_named(dtype), device);
  };
  switch (n.size()) {
    case 0:
      return make({});
    case 1:
      return make({n[0]});
    case 2:
      return make({n[0], n[1]});
    case 3:
      return make({n[0], n[1], n[2]});
    case 4:
      return make({n[0], n[1], n[2], n[3]});
    case 8:
      return make({n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7]});
    case 9:
      return make({n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8]});
    default:
      throw py::value_error("the tests make tensors of other dimensions");
  }
}

void bind_runtime(py::module_ m) {
  m.def("dtype_from_torch", [](int32_t code) { return sglk::name(sglk::dtype_from_torch(code)); });
  m.def("dtype_to_torch", [](const std::string& name) { return sglk::dtype_to_torch(dtype_named(name)); });
  m.def("view", [](const py::handle& tensor) { return view_to_python(probes::view(tensor_of(tensor))); });
  m.def("empty", [](const std::vector<int64_t>& sizes, const std::string& dtype, int device_type, int index) {
    return view_to_python(
        probes::view(empty(sizes, dtype, {static_cast<sglk::DeviceType>(device_type), index})));
  });
  m.def("move_about", [](const py::handle& first, const py::handle& second) {
    return probes::move_about(tensor_of(first), tensor_of(second));
  });
  m.def("format_long", [](size_t length) { return sglk::format("<%s>", std::string(length, 'x').c_str()); });

  using sglk::Argument;
  m.def("check_dim", [](const py::handle& t, int64_t dim, const std::string& meaning) {
    const sglk::Tensor tensor = tensor_of(t);
    sglk::check_dim({"op", "x", tensor}, dim, meaning.c_str());
  });
  m.def("check_size", [](const py::handle& t, int64_t d, int64_t expected, const std::string& reason) {
    const sglk::Tensor tensor = tensor_of(t);
    sglk::check_size({"op", "x", tensor}, d, expected, reason.c_str());
  });
  m.def("check_dtype", [](const py::handle& t, const std::string& expected, const std::string& reason) {
    const sglk::Tensor tensor = tensor_of(t);
    sglk::check_dtype({"op", "x", tensor}, dtype_named(expected), reason.c_str());
  });
  m.def("check_dtype_in_three", [](const py::handle& t) {
    const sglk::Tensor tensor = tensor_of(t);
    sglk::check_dtype_in({"op", "x", tensor},
                         {sglk::DType::kFloat16, sglk::DType::kBFloat16, sglk::DType::kInt32});
  });
  m.def("check_device", [](const py::handle& t, int device_type, int index, const std::string& reason) {
    const sglk::Tensor tensor = tensor_of(t);
    sglk::check_device({"op", "x", tensor}, {static_cast<sglk::DeviceType>(device_type), index},
                       reason.c_str());
  });
  m.def("check_last_stride", [](const py::handle& t) {
    const sglk::Tensor tensor = tensor_of(t);
    sglk::check_last_stride({"op", "x", tensor});
  });
  m.def("is_aligned", [](int bytes, int element_size, uintptr_t address, int64_t stride, int64_t other) {
    return sglk::is_aligned(bytes, element_size, reinterpret_cast<const void*>(address), {stride, other});
  });
  m.def("checked_grid", [](int64_t blocks) { return sglk::checked_grid("op", blocks); });
}

// What the modules of all families have. `first` and `second` select the op or style and the element type.
template <class First, class Second>
void bind_kernels(py::module_ m, int count, int (*index)(First, Second, int), std::string (*name)(int),
                  size_t params) {
  m.attr("kernel_count") = count;
  m.attr("params_size") = params;
  m.def("kernel_index", [index](int first, int second, int shape) {
    return index(static_cast<First>(first), static_cast<Second>(second), shape);
  });
  m.def("kernel_name", name);
}

void bind_norm(py::module_ m) {
  using namespace sglk::norm;
  bind_kernels(m, kKernelCount, kernel_index, kernel_name, sizeof(sglk::NormParams));
  py::list shapes;
  for (const Shape& s : kShapes)
    shapes.append(py::make_tuple(s.name, s.lanes, s.width, s.accesses, s.max_threads));
  m.attr("shapes") = shapes;
  m.def("choose", [](int64_t tokens, int64_t hidden, bool is_aligned) {
    const Choice c = choose(tokens, hidden, is_aligned);
    return py::make_tuple(c.shape, c.threads, c.blocks);
  });
}

void bind_activation(py::module_ m) {
  using namespace sglk::activation;
  bind_kernels(m, kKernelCount, kernel_index, kernel_name, sizeof(sglk::ActivationParams));
  py::list shapes;
  for (const Shape& s : kShapes) shapes.append(py::make_tuple(s.name, s.is_vector, s.vectors));
  m.attr("shapes") = shapes;
  m.def("choose", [](int64_t rows, int64_t width, int element_size, bool is_aligned, int multiprocessors) {
    const Choice c = choose(rows, width, element_size, is_aligned, multiprocessors);
    return py::make_tuple(c.shape, c.threads, c.lanes_log2, c.chunks, c.blocks);
  });
}

void bind_rope(py::module_ m) {
  using namespace sglk::rope;
  bind_kernels(m, kKernelCount, kernel_index, kernel_name, sizeof(sglk::RopeParams));
  py::list shapes;
  for (const Shape& s : kShapes) shapes.append(py::make_tuple(s.name, s.pairs, s.unroll));
  m.attr("shapes") = shapes;
  m.attr("max_threads") = kMaxThreads;
  m.attr("max_rotary_dim") = kMaxRotaryDim;
  m.def("choose", [](int64_t tokens, int heads, int rotary_dim, bool is_aligned, int multiprocessors) {
    const Choice c = choose(tokens, heads, rotary_dim, is_aligned, multiprocessors);
    return py::make_tuple(c.shape, c.threads, c.lanes, c.heads_per_block, c.head_blocks);
  });
}

void bind_merge(py::module_ m) {
  using namespace sglk::merge;
  bind_kernels(m, kKernelCount, kernel_index, kernel_name, sizeof(sglk::MergeParams));
  py::list shapes;
  for (const Shape& s : kShapes) shapes.append(py::make_tuple(s.name, s.is_vector, s.rows));
  m.attr("shapes") = shapes;
  m.def("choose", [](int64_t rows, int64_t dim, int element_size, bool is_aligned, int multiprocessors) {
    const Choice c = choose(rows, dim, element_size, is_aligned, multiprocessors);
    return py::make_tuple(c.shape, c.threads, c.lanes_log2, c.blocks);
  });
}

void bind_grammar(py::module_ m) {
  using namespace sglk::grammar;
  bind_kernels(m, kKernelCount, kernel_index, kernel_name, sizeof(sglk::GrammarParams));
  py::list shapes;
  for (const Shape& s : kShapes) shapes.append(py::make_tuple(s.name, s.is_vector));
  m.attr("shapes") = shapes;
  m.attr("threads") = kThreads;
  m.def("choose", [](int64_t rows, int64_t tokens, int element_size, bool is_aligned) {
    const Choice c = choose(rows, tokens, element_size, is_aligned);
    return py::make_tuple(c.shape, c.chunks, c.blocks);
  });
}

void bind_kv_store(py::module_ m) {
  using namespace sglk::kv_store;
  m.attr("kernel_count") = kKernelCount;
  m.attr("params_size") = sizeof(sglk::KvStoreParams);
  m.def("kernel_index",
        [](int op, int /*no element type*/, int shape) { return kernel_index(static_cast<Op>(op), shape); });
  m.def("kernel_name", kernel_name);
  py::list shapes;
  for (const Shape& s : kShapes) shapes.append(py::make_tuple(s.name, s.is_vector));
  m.attr("shapes") = shapes;
  m.attr("threads") = kMaxThreads;
  m.def("choose", [](int64_t tokens, int64_t units) {
    const Choice c = choose(tokens, units);
    return py::make_tuple(c.lanes_log2, c.blocks);
  });
}

void bind_moe_gate(py::module_ m) {
  using namespace sglk::moe_gate;
  bind_kernels(m, kKernelCount, kernel_index, kernel_name, sizeof(sglk::MoeGateParams));
  py::list shapes;
  for (const Shape& s : kShapes) shapes.append(py::make_tuple(s.name, s.values));
  m.attr("shapes") = shapes;
  m.attr("warps") = kWarps;
  m.def("choose", choose);
  m.def("blocks", blocks);
}

void bind_moe_align(py::module_ m) {
  using namespace sglk::moe_align;
  m.attr("kernel_count") = kKernelCount;
  m.attr("params_size") = sizeof(sglk::MoeAlignParams);
  m.def("kernel_index",
        [](int /*one op*/, int type, int kernel) { return kernel_index(static_cast<IdType>(type), kernel); });
  m.def("kernel_name", kernel_name);
  py::list shapes;
  for (const Shape& s : kShapes) shapes.append(py::make_tuple(s.name));
  m.attr("shapes") = shapes;
  m.attr("max_threads") = kThreads;
  m.def("choose", [](int64_t choices, int64_t buckets, int64_t filled, int64_t shared_limit) {
    const Choice c = choose(choices, buckets, filled, shared_limit);
    return py::make_tuple(c.placers, c.segment, c.blocks, c.shared, c.is_single);
  });
}

void bind_marlin_repack(py::module_ m) {
  using namespace sglk::marlin_repack;
  m.attr("kernel_count") = kKernelCount;
  m.attr("params_size") = sizeof(sglk::MarlinRepackParams);
  m.attr("max_threads") = kMaxThreads;
  m.def("kernel_name", kernel_name);
  m.def("choose", [](int source, int bits, int64_t size_k, int64_t size_n) {
    const Choice c = choose(static_cast<Source>(source), bits, size_k, size_n);
    return py::make_tuple(c.kernel, kKernels[c.kernel].tiles, c.chunks, c.blocks);
  });
}

void bind_awq(py::module_ m) {
  using namespace sglk::awq;
  m.attr("kernel_count") = kKernelCount;
  m.attr("params_size") = sizeof(sglk::AwqParams);
  m.attr("max_threads") = kMaxThreads;
  m.def("kernel_name", kernel_name);
  m.def("choose", [](int64_t rows, int64_t words, int64_t group_size, bool is_aligned, int multiprocessors) {
    const Choice c = choose(rows, words, group_size, is_aligned, multiprocessors);
    return py::make_tuple(kShapes[c.shape].name, kShapes[c.shape].rows, c.chunks, c.blocks);
  });
}

void bind_gptq(py::module_ m) {
  using namespace sglk::gptq;
  m.attr("kernel_count") = kKernelCount;
  m.attr("params_size") = sizeof(sglk::GptqParams);
  m.attr("max_threads") = kMaxThreads;
  m.def("kernel_name", kernel_name);
  m.def("choose", [](int64_t tokens, int64_t n, int64_t k, int multiprocessors) {
    const Choice c = choose(tokens, n, k, multiprocessors);
    return py::make_tuple(kShapes[c.shape].rows, c.units_per_split, c.splits, c.row_blocks, c.column_blocks,
                          c.blocks);
  });
}

void bind_sampling(py::module_ m) {
  using namespace sglk::sampling;
  bind_kernels(m, kKernelCount, kernel_index, kernel_name, sizeof(sglk::SamplingParams));
  py::list shapes;
  for (const Shape& s : kShapes) shapes.append(py::make_tuple(s.name, s.elements));
  m.attr("shapes") = shapes;
  m.attr("threads") = kThreads;
  m.def("choose", [](int64_t rows, int64_t vocabulary, bool is_aligned, int multiprocessors) {
    const Choice c = choose(rows, vocabulary, is_aligned, multiprocessors);
    return py::make_tuple(c.shape, c.chunks, c.segment, c.capacity, c.fraction_bits);
  });
}

void bind_marlin_gemm(py::module_ m) {
  using namespace sglk::marlin_gemm;
  m.attr("kernel_count") = kKernelCount;
  m.def("params_size_of",
        [](int kernel) { return kernel < 2 * kShapeCount ? sizeof(Params) : sizeof(Sm90Params); });
  m.def("kernel_index",
        [](int /*op*/, int type, int shape) { return kernel_index(static_cast<ElementType>(type), shape); });
  m.def("kernel_name", kernel_name);
  py::list shapes;
  for (const Shape& s : kShapes) {
    const bool is_gather = &s == kShapes + kGather;  // which has no tile
    shapes.append(py::make_tuple(s.name, int{s.weight}, s.is_act_order, s.tile.m, s.tile.unit(), s.tile.width,
                                 is_gather ? 0 : s.tile.shared_bytes(bits(s.weight)),
                                 is_gather ? kGatherThreads : s.tile.threads()));
  }
  m.attr("shapes") = shapes;
  m.def("choose", [](int64_t rows, int64_t n, int64_t k, int weight, bool is_act_order, int64_t group,
                     int multiprocessors, int shared_memory) {
    const Choice c = choose(rows, n, k, static_cast<WeightType>(weight), is_act_order, group, multiprocessors,
                            shared_memory);
    return py::make_tuple(c.shape, c.tiles.m, c.tiles.n, c.partition, c.partition.blocks, c.shared_bytes,
                          c.partition.is_split());
  });
  py::list sm90_shapes;
  for (const Sm90Shape& s : kSm90Shapes)
    sm90_shapes.append(
        py::make_tuple(s.name, s.tile.tokens, s.tile.width, s.tile.shared_bytes(), s.tile.threads()));
  m.attr("sm90_shapes") = sm90_shapes;
  m.def("has_sm90_path", [](int compute_capability, int weight, bool is_act_order) {
    return has_sm90_path(compute_capability, static_cast<WeightType>(weight), is_act_order);
  });
  m.def("choose_sm90", [](int64_t rows, int64_t n, int64_t k, int64_t group, int multiprocessors) {
    const Choice c = choose_sm90(rows, n, k, group, multiprocessors);
    return py::make_tuple(c.shape, c.tiles.m, c.tiles.n, c.partition, c.partition.blocks, c.shared_bytes,
                          c.partition.is_split());
  });
  m.def("prefers_sm90_path", prefers_sm90_path);
  m.def("child_of", child_of);
  m.def("parent_of", [](int place, int blocks, int flat) {
    const Parent parent = parent_of(place, blocks, flat);
    return py::make_tuple(parent.place, parent.child);
  });
  m.def("tile_at", [](int tile, int m_tiles, int n_tiles) {
    const TileIndex index = TileGrid::of(m_tiles, n_tiles).at(tile);
    return py::make_tuple(index.m, index.n);
  });
  py::class_<Partition>(m, "Partition", py::module_local())
      .def(py::init(&Partition::of))
      .def_static("even", &Partition::even)
      .def_readonly("tiles", &Partition::tiles)
      .def_property_readonly("tile_units", [](const Partition& p) { return p.tile.value; })
      .def_property_readonly("direct", [](const Partition& p) { return p.list_begin / p.tile.value; })
      .def_property_readonly("is_whole", &Partition::is_whole)
      .def_readonly("blocks", &Partition::blocks)
      .def("length", &Partition::length)
      .def("first", &Partition::first)
      .def("begin", &Partition::begin)
      .def("next", &Partition::next)
      .def("block_of", &Partition::block_of);
  m.def("team_unit", team_unit);
  m.def("divide", [](int x, int by) { return Divisor::of(by).divide(x); });
}

}  // namespace

void bind_pure(py::module_ m) {
  bind_runtime(m.def_submodule("runtime"));
  bind_norm(m.def_submodule("norm"));
  bind_activation(m.def_submodule("activation"));
  bind_rope(m.def_submodule("rope"));
  bind_merge(m.def_submodule("merge"));
  bind_grammar(m.def_submodule("grammar"));
  bind_kv_store(m.def_submodule("kv_store"));
  bind_moe_gate(m.def_submodule("moe_gate"));
  bind_moe_align(m.def_submodule("moe_align"));
  bind_marlin_repack(m.def_submodule("marlin_repack"));
  bind_awq(m.def_submodule("awq"));
  bind_gptq(m.def_submodule("gptq"));
  bind_sampling(m.def_submodule("sampling"));
  bind_marlin_gemm(m.def_submodule("marlin_gemm"));
}
