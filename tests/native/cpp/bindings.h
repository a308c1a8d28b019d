// What the two halves of the Python module share.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "fake_torch.h"
#include "probes.h"

namespace py = pybind11;

fake::TensorSpec spec_of(const py::handle& tensor);
py::dict view_to_python(const probes::View& view);

// The functions of csrc that need neither torch nor the driver: tensors, checks, heuristics.
void bind_pure(py::module_ m);
