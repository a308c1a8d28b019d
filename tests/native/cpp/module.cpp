// The Python module `native`: calls ops the way torch does, and says what torch and the driver saw of it.
#include <bit>
#include <cstring>
#include <optional>

#include "bindings.h"
#include "fake_driver.h"
#include "fake_torch.h"
#include "probes.h"
#include "runtime/driver.h"
#include "runtime/registry.h"

// The sanitizer's own hooks: every report, also of a place that it has reported before, becomes a problem of
// the test that is running.
extern "C" const char* __ubsan_default_options() { return "suppress_equal_pcs=0"; }
extern "C" void __ubsan_get_current_report_data(const char** kind, const char** message, const char** file,
                                                unsigned* line, unsigned* column, char** address);
extern "C" void __ubsan_on_report() {
  const char *kind = "", *message = "", *file = "";
  unsigned line = 0, column = 0;
  char* address = nullptr;
  __ubsan_get_current_report_data(&kind, &message, &file, &line, &column, &address);
  fake::note_problem(
      sglk::format("undefined behaviour: %s:%u:%u: %s: %s", file, line, column, kind, message));
}

namespace {

// A call by the op's schema, as torch makes it.
struct Schema {
  std::vector<std::string> arguments;  // "Tensor", "Tensor?", "int" …
  size_t results = 0;
};

Schema parse(const std::string& text) {
  Schema schema;
  const size_t open = text.find('('), arrow = text.rfind(") -> ");
  std::string list = text.substr(open + 1, arrow - open - 1);
  while (!list.empty()) {
    const size_t comma = list.find(", ");
    std::string type = list.substr(0, list.substr(0, comma).rfind(' '));
    if (const size_t alias = type.find('('); alias != std::string::npos)
      type.erase(alias, type.find(')') - alias + 1);
    schema.arguments.push_back(type);
    list = comma == std::string::npos ? "" : list.substr(comma + 2);
  }
  const std::string results = text.substr(arrow + 5);
  for (size_t at = results.find("Tensor"); at != std::string::npos; at = results.find("Tensor", at + 1))
    ++schema.results;
  return schema;
}

// One slot as torch 2.7.0 fills it: of a bool and a ScalarType only the lowest byte is written, the rest is
// whatever was there.
StableIValue encode(const std::string& type, const py::handle& value, uint64_t garbage) {
  if (type.ends_with("?")) {
    if (value.is_none()) return 0;
    const StableIValue inner = encode(type.substr(0, type.size() - 1), value, garbage);
    return reinterpret_cast<StableIValue>(fake::new_slot(inner));
  }
  if (type == "Tensor") return reinterpret_cast<StableIValue>(fake::new_tensor(spec_of(value)));
  if (type == "int") return static_cast<StableIValue>(value.cast<int64_t>());
  if (type == "float") return std::bit_cast<StableIValue>(value.cast<double>());
  if (type == "bool") return (garbage & ~uint64_t{0xff}) | (value.cast<bool>() ? 1 : 0);
  if (type == "ScalarType") return (garbage & ~uint64_t{0xff}) | static_cast<uint8_t>(value.cast<int32_t>());
  throw py::value_error("fake torch: no such type: " + type);
}

py::dict to_python(const fake::TensorSpec& spec) {
  py::dict result;
  result["sizes"] = spec.sizes;
  result["strides"] = spec.strides;
  result["dtype_code"] = spec.dtype;
  result["device_type"] = spec.device_type;
  result["device_index"] = spec.device_index;
  return result;
}

// inputs: the count that the op is told, where it differs from that of `values`.
py::list call(const std::string& op, const py::list& values, uint64_t garbage,
              std::optional<uint64_t> inputs) {
  const fake::Registration* known = nullptr;
  for (const fake::Registration& r : fake::registrations()) {
    if (r.name == op) known = &r;
  }
  if (known == nullptr || known->entry == nullptr) throw py::key_error(op);
  const Schema schema = parse(known->schema);
  if (!inputs && values.size() != schema.arguments.size())
    throw py::value_error(op + ": wrong number of values");
  std::vector<StableIValue> stack(std::max(schema.arguments.size(), schema.results), garbage);
  for (size_t i = 0; i < values.size(); ++i) stack[i] = encode(schema.arguments[i], values[i], garbage);
  {
    const py::gil_scoped_release release;
    known->entry(stack.data(), inputs.value_or(values.size()), schema.results);
  }
  py::list results;
  for (size_t i = 0; i < schema.results; ++i) {
    results.append(to_python(fake::take_tensor(reinterpret_cast<AtenTensorHandle>(stack[i]))));
  }
  return results;
}

struct ToPython {
  py::object operator()(probes::None) const { return py::none(); }
  py::object operator()(int64_t value) const { return py::int_(value); }
  py::object operator()(double value) const { return py::float_(value); }
  py::object operator()(bool value) const { return py::bool_(value); }
  py::object operator()(const probes::DTypeName& value) const { return py::str(value.name); }
  py::object operator()(const probes::View& value) const { return view_to_python(value); }
};

py::dict to_python(const sglk::RopeHeads& heads) {
  py::dict result;
  result["data"] = reinterpret_cast<uintptr_t>(heads.data);
  result["token_stride"] = heads.token_stride;
  result["head_stride"] = heads.head_stride;
  return result;
}

py::dict params_of(const fake::Launch& launch) {
  py::dict result;
#define SGLK_FIELD(family, field) result[#field] = launch.params.family.field
#define SGLK_POINTER(family, field) result[#field] = reinterpret_cast<uintptr_t>(launch.params.family.field)
#define SGLK_HEADS(field) result[#field] = to_python(launch.params.rope.field)
  if (launch.family == "norm") {
    SGLK_POINTER(norm, output);
    SGLK_POINTER(norm, input);
    SGLK_POINTER(norm, residual);
    SGLK_POINTER(norm, weight);
    SGLK_FIELD(norm, output_stride);
    SGLK_FIELD(norm, input_stride);
    SGLK_FIELD(norm, residual_stride);
    SGLK_FIELD(norm, tokens);
    SGLK_FIELD(norm, hidden);
    SGLK_FIELD(norm, eps);
    SGLK_FIELD(norm, weight_bias);
  } else if (launch.family == "activation") {
    SGLK_POINTER(activation, output);
    SGLK_POINTER(activation, input);
    SGLK_FIELD(activation, output_stride);
    SGLK_FIELD(activation, input_stride);
    SGLK_FIELD(activation, rows);
    SGLK_FIELD(activation, width);
    SGLK_FIELD(activation, lanes_log2);
    SGLK_FIELD(activation, chunks);
  } else if (launch.family == "rope") {
    SGLK_HEADS(q_in);
    SGLK_HEADS(k_in);
    SGLK_HEADS(q_out);
    SGLK_HEADS(k_out);
    SGLK_HEADS(k_cache);
    SGLK_HEADS(v_cache);
    SGLK_HEADS(v_in);
    SGLK_POINTER(rope, cos_sin);
    SGLK_POINTER(rope, position);
    SGLK_POINTER(rope, cache_slot);
    SGLK_FIELD(rope, max_position);
    SGLK_FIELD(rope, cache_slots);
    SGLK_FIELD(rope, q_heads);
    SGLK_FIELD(rope, k_heads);
    SGLK_FIELD(rope, head_size);
    SGLK_FIELD(rope, rotary_dim);
    SGLK_FIELD(rope, lanes);
    SGLK_FIELD(rope, heads_per_block);
    SGLK_FIELD(rope, is_position_64);
    SGLK_FIELD(rope, is_in_place);
  } else if (launch.family == "merge") {
    SGLK_POINTER(merge, v_merged);
    SGLK_POINTER(merge, s_merged);
    SGLK_POINTER(merge, v_a);
    SGLK_POINTER(merge, v_b);
    SGLK_POINTER(merge, s_a);
    SGLK_POINTER(merge, s_b);
    SGLK_FIELD(merge, rows);
    SGLK_FIELD(merge, units);
    SGLK_FIELD(merge, lanes_log2);
  } else if (launch.family == "grammar") {
    SGLK_POINTER(grammar, logits);
    SGLK_POINTER(grammar, bitmask);
    SGLK_POINTER(grammar, indices);
    SGLK_FIELD(grammar, logits_stride);
    SGLK_FIELD(grammar, bitmask_stride);
    SGLK_FIELD(grammar, rows);
    SGLK_FIELD(grammar, tokens);
    SGLK_FIELD(grammar, chunks);
    SGLK_FIELD(grammar, is_index_64);
  } else if (launch.family == "kv_store") {
    SGLK_POINTER(kv_store, k_cache);
    SGLK_POINTER(kv_store, v_cache);
    SGLK_POINTER(kv_store, k);
    SGLK_POINTER(kv_store, v);
    SGLK_POINTER(kv_store, k_scale);
    SGLK_POINTER(kv_store, v_scale);
    SGLK_POINTER(kv_store, loc);
    SGLK_FIELD(kv_store, k_cache_stride);
    SGLK_FIELD(kv_store, v_cache_stride);
    SGLK_FIELD(kv_store, k_stride);
    SGLK_FIELD(kv_store, v_stride);
    SGLK_FIELD(kv_store, tokens);
    SGLK_FIELD(kv_store, k_slots);
    SGLK_FIELD(kv_store, v_slots);
    SGLK_FIELD(kv_store, mult);
    SGLK_FIELD(kv_store, offset);
    SGLK_FIELD(kv_store, k_units);
    SGLK_FIELD(kv_store, v_units);
    SGLK_FIELD(kv_store, lanes_log2);
    SGLK_FIELD(kv_store, is_loc_64);
  } else if (launch.family == "moe_gate") {
    SGLK_POINTER(moe_gate, weights);
    SGLK_POINTER(moe_gate, ids);
    SGLK_POINTER(moe_gate, input);
    SGLK_POINTER(moe_gate, bias);
    SGLK_FIELD(moe_gate, weights_stride);
    SGLK_FIELD(moe_gate, ids_stride);
    SGLK_FIELD(moe_gate, input_stride);
    SGLK_FIELD(moe_gate, tokens);
    SGLK_FIELD(moe_gate, experts);
    SGLK_FIELD(moe_gate, topk);
    SGLK_FIELD(moe_gate, group_size);
    SGLK_FIELD(moe_gate, topk_group);
    SGLK_FIELD(moe_gate, shared);
    SGLK_FIELD(moe_gate, bias_type);
    SGLK_FIELD(moe_gate, shared_weight);
    SGLK_FIELD(moe_gate, scale);
    SGLK_FIELD(moe_gate, is_renormalized);
  } else if (launch.family == "moe_align") {
    SGLK_POINTER(moe_align, ids);
    SGLK_POINTER(moe_align, sorted);
    SGLK_POINTER(moe_align, labels);
    SGLK_POINTER(moe_align, total);
    SGLK_POINTER(moe_align, counts);
    SGLK_FIELD(moe_align, choices);
    SGLK_FIELD(moe_align, sorted_size);
    SGLK_FIELD(moe_align, labels_size);
    SGLK_FIELD(moe_align, buckets);
    SGLK_FIELD(moe_align, block_size);
    SGLK_FIELD(moe_align, segment);
    SGLK_FIELD(moe_align, placers);
    SGLK_FIELD(moe_align, is_padded);
  } else if (launch.family == "sampling") {
    SGLK_POINTER(sampling, input);
    SGLK_POINTER(sampling, output);
    SGLK_POINTER(sampling, tokens);
    SGLK_POINTER(sampling, indices);
    SGLK_POINTER(sampling, top_k);
    SGLK_POINTER(sampling, limit);
    SGLK_POINTER(sampling, states);
    SGLK_POINTER(sampling, counts);
    SGLK_POINTER(sampling, masses);
    SGLK_POINTER(sampling, segments);
    SGLK_POINTER(sampling, candidates);
    SGLK_FIELD(sampling, input_stride);
    SGLK_FIELD(sampling, output_stride);
    SGLK_FIELD(sampling, seed);
    SGLK_FIELD(sampling, offset);
    SGLK_FIELD(sampling, clear_vectors);
    SGLK_FIELD(sampling, rows);
    SGLK_FIELD(sampling, input_rows);
    SGLK_FIELD(sampling, vocabulary);
    SGLK_FIELD(sampling, chunks);
    SGLK_FIELD(sampling, segment);
    SGLK_FIELD(sampling, capacity);
    SGLK_FIELD(sampling, fraction_bits);
    SGLK_FIELD(sampling, top_k_value);
    SGLK_FIELD(sampling, limit_value);
    SGLK_FIELD(sampling, is_logits);
  }
  return result;
}

py::dict to_python(const fake::Launch& launch) {
  py::dict result;
  result["family"] = launch.family;
  result["kernel"] = launch.kernel;
  result["grid"] = py::make_tuple(launch.grid[0], launch.grid[1], launch.grid[2]);
  result["block"] = py::make_tuple(launch.block[0], launch.block[1], launch.block[2]);
  result["cluster"] = py::make_tuple(launch.cluster[0], launch.cluster[1], launch.cluster[2]);
  result["shared_bytes"] = launch.shared_bytes;
  result["stream"] = launch.stream;
  result["device"] = launch.device;
  result["is_pdl"] = launch.is_pdl;
  result["params"] = params_of(launch);
  return result;
}

void bind_torch(py::module_ m) {
  m.def("call", &call, py::arg("op"), py::arg("values"), py::arg("garbage") = 0,
        py::arg("inputs") = py::none());
  m.def("fail", &fake::fail, py::arg("function"), py::arg("nth") = 1);
  m.def("is_failure_pending", &fake::is_failure_pending);
  m.def("fallible", &fake::fallible);
  m.def("problems", &fake::problems);
  m.def("set_check_barrier", &fake::set_check_barrier);
  m.def("set_dtype_code", &fake::set_dtype_code);
  m.def("load_error", [] { return sglk_load_error(); });
  m.def("registrations", [] {
    py::list all;
    for (const fake::Registration& r : fake::registrations()) {
      py::dict one;
      one["name"] = r.name;
      one["schema"] = r.schema;
      one["name_space"] = r.name_space;
      one["key"] = r.key;
      one["arguments"] = parse(r.schema).arguments;
      all.append(one);
    }
    return all;
  });
  m.def("seen", [] {
    py::list all;
    for (const probes::Value& value : probes::seen()) all.append(std::visit(ToPython{}, value));
    return all;
  });
  m.def("misbehave", &probes::misbehave, py::arg("how") = "", py::arg("text") = "");
}

void bind_driver(py::module_ m) {
  m.def("set", [](const std::string& what, const py::object& value) {
    fake::Machine& machine = fake::machine();
#define SGLK_SET(field) \
  if (what == #field) return void(machine.field = value.cast<decltype(machine.field)>())
    SGLK_SET(has_driver);
    SGLK_SET(has_torch_cuda);
    SGLK_SET(missing_symbol);
    SGLK_SET(devices);
    SGLK_SET(compute_capability);
    SGLK_SET(multiprocessors);
    SGLK_SET(shared_memory);
    SGLK_SET(failing);
    SGLK_SET(failing_status);
    throw py::key_error(what);
  });
  m.def("reset", [] { fake::machine() = {}; });
  m.def("calls", &fake::calls);
  m.def("set_current_context", &fake::set_current_context);
  m.def("context_depth", &fake::context_depth);
  m.def("is_capture_mode_restored", &fake::is_capture_mode_restored);
  m.def("families", &fake::families);
  m.def("launches", [] {
    py::list all;
    for (const fake::Launch& launch : fake::launches()) all.append(to_python(launch));
    return all;
  });
  m.def("functions", [] {
    std::vector<std::string> names;
#define SGLK_NAME(member, symbol) names.push_back(#symbol);
    SGLK_DRIVER_FUNCTIONS(SGLK_NAME)
    return names;
  });
}

}  // namespace

PYBIND11_MODULE(native, m) {
  bind_torch(m.def_submodule("torch"));
  bind_driver(m.def_submodule("driver"));
  bind_pure(m);
}
