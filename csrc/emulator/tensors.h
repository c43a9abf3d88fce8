// Tensors of torch as the kernels' arguments, without torch: what they say of themselves in Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <type_traits>

#include "../cuda/plan.h"
#include "../cuda/ragged.h"
#include "emulator.h"
#include "exchange.h"

namespace dmm::emulator {

namespace py = pybind11;

// Null for one without elements.
template <class S>
S* data(const py::object& t) {
  return reinterpret_cast<S*>(t.attr("data_ptr")().cast<uintptr_t>());
}
inline int size(const py::object& t, int d) { return t.attr("size")(d).cast<int>(); }
inline int64_t stride(const py::object& t, int d) { return t.attr("stride")(d).cast<int64_t>(); }

// [P, B, T, W] or [P, B, W].
inline cuda::Sequences<const float> sequences(const py::object& t) {
  const bool steps = t.attr("dim")().cast<int>() == 4;
  return {data<const float>(t), stride(t, 0), stride(t, 1), steps ? stride(t, 2) : 0, stride(t, -1)};
}
inline cuda::Matrix matrix(const py::object& t) { return {data<const float>(t), stride(t, 0), stride(t, 1)}; }
inline cuda::Ragged ragged(const py::object& like, const py::object& lengths, const cuda::Plan& plan) {
  return {data<const int64_t>(lengths), stride(lengths, 0), size(like, 0), size(like, 1), size(like, 2),
          static_cast<int>(plan[0]), static_cast<int>(plan[1])};
}

// Runs `kernel(args)` once as every thread of as many clusters as the rows take. Throws where a wait gave up, with the
// words that the op has for it.
template <class Args, class Kernel>
void run_scan(const std::string& call, Args args, int threads, const Options& options, Kernel kernel) {
  const int blocks = args.ragged.clusters() * args.cluster_size;
  run_exchange(call, args, {blocks, args.cluster_size, threads, shared_bytes(args), options}, kernel);
}

}  // namespace dmm::emulator
