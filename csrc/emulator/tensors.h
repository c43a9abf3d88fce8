// Tensors of torch as kernel arguments, accessed through their Python attributes, without linking torch.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <type_traits>

#include "../cuda/launches.h"
#include "emulator.h"
#include "exchange.h"

namespace dmm::emulator {

namespace py = pybind11;

// A tensor of torch, with the functions that cuda/launches.h requires.
struct Tensor {
  py::object object;
};
inline int64_t dims_of(const Tensor& t) { return t.object.attr("dim")().cast<int64_t>(); }
inline int64_t size_of(const Tensor& t, int64_t d) { return t.object.attr("size")(d).cast<int64_t>(); }
inline int64_t stride_of(const Tensor& t, int64_t d) { return t.object.attr("stride")(d).cast<int64_t>(); }
// Null for a tensor without elements.
template <class S>
S* data_of(const Tensor& t) {
  return reinterpret_cast<S*>(t.object.attr("data_ptr")().cast<uintptr_t>());
}
inline const float* floats_of(const Tensor& t) { return data_of<const float>(t); }
inline const int64_t* longs_of(const Tensor& t) { return data_of<const int64_t>(t); }
inline float* result_of(const Tensor& t) { return data_of<float>(t); }

// Reads an argument of a launch by name.
inline void read(const py::dict& given, const char* name, Tensor& field) { field.object = given[name]; }
inline void read(const py::dict& given, const char*, cuda::CombinerWeights<Tensor>& weights) {
  weights.visit([&](const char* name, Tensor& field) { read(given, name, field); });
}
template <class Field>
void read(const py::dict& given, const char* name, Field& field) {
  field = given[name].cast<Field>();
}
template <class Launch>
Launch launch_of(const py::dict& given) {
  Launch launch{};
  launch.visit([&](const char* name, auto& field) { read(given, name, field); });
  return launch;
}

// Runs `kernel(args)` once in every thread of as many clusters as the rows need. Throws if a wait gave up, with the op's
// error message.
template <class Args, class Kernel>
void run_scan(const std::string& call, Args args, int threads, const Options& options, Kernel kernel) {
  const int blocks = args.ragged.clusters() * args.cluster_size;
  run_exchange(call, args, {blocks, args.cluster_size, threads, shared_bytes(args), options}, kernel);
}

}  // namespace dmm::emulator
