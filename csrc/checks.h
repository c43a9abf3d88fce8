// Arguments as they come from torch: checked here, before any memory is touched, and turned into what the
// kernels take. A message names the argument, what was expected and what came.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/args.h"

namespace dmm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string describe(const Tensor& t) {
  std::ostringstream out;
  out << torch::headeronly::toString(t.scalar_type()) << " of shape (";
  for (int64_t d = 0; d < t.dim(); ++d) out << (d ? ", " : "") << t.size(d);
  out << (t.dim() == 1 ? ",)" : ")") << (t.is_cpu() ? " on cpu" : " on another device");
  return out.str();
}

inline std::string shape_string(const std::vector<int64_t>& shape) {
  std::ostringstream out;
  out << "(";
  for (size_t d = 0; d < shape.size(); ++d) out << (d ? ", " : "") << shape[d];
  out << (shape.size() == 1 ? ",)" : ")");
  return out.str();
}

// What the tensors of one call have in common.
struct Common {
  ScalarType dtype;
  explicit Common(const Tensor& first) : dtype(first.scalar_type()) {}

  void check(const char* name, const Tensor& t, const std::vector<int64_t>& shape) const {
    bool fits = t.is_cpu() && t.scalar_type() == dtype && t.dim() == static_cast<int64_t>(shape.size());
    for (size_t d = 0; fits && d < shape.size(); ++d) fits = t.size(static_cast<int64_t>(d)) == shape[d];
    STD_TORCH_CHECK(fits, name, ": expected ", torch::headeronly::toString(dtype), " of shape ",
                    shape_string(shape), " on cpu, got ", describe(t));
  }
};

inline void check_first(const char* name, const Tensor& t, int64_t dims) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == dims &&
                      (t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double),
                  name, ": expected Float or Double of ", dims, " dimensions on cpu, got ", describe(t));
}

inline void check_lengths(const Tensor& lengths, int64_t batch, int64_t steps) {
  STD_TORCH_CHECK(lengths.is_cpu() && lengths.scalar_type() == ScalarType::Long && lengths.dim() == 1 &&
                      lengths.size(0) == batch,
                  "lengths: expected Long of shape (", batch, ",) on cpu, got ", describe(lengths));
  const int64_t* values = lengths.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = values[b * lengths.stride(0)];
    STD_TORCH_CHECK(length >= 0 && length <= steps, "lengths: expected values between 0 and T = ", steps,
                    ", got ", length, " in row ", b);
  }
}

// A tensor whose last dimension is contiguous: itself, or a copy.
inline Tensor with_dense_rows(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.size(last) <= 1 || t.stride(last) == 1 ? t : torch::stable::contiguous(t);
}

// [P, B, T, W] or [P, B, W] as rows; `t` must outlive the result and have dense rows.
template <class S, class T>
cpu::Rows<S> rows_of(const T& t) {
  const int64_t particles = t.size(0), batch = t.size(1);
  S* data;
  if constexpr (std::is_const_v<S>) data = t.template const_data_ptr<std::remove_const_t<S>>();
  else data = t.template mutable_data_ptr<S>();
  cpu::Rows<S> rows{{}, t.dim() == 4 ? t.stride(2) : 0};
  rows.begin.reserve(particles * batch);
  for (int64_t p = 0; p < particles; ++p)
    for (int64_t b = 0; b < batch; ++b) rows.begin.push_back(data + p * t.stride(0) + b * t.stride(1));
  return rows;
}

// `lengths` must be contiguous and outlive the result.
inline cpu::Ragged ragged_of(int64_t particles, int64_t batch, int64_t steps, const Tensor& lengths) {
  cpu::Ragged ragged{particles * batch, batch, steps, lengths.const_data_ptr<int64_t>(), {}, {}};
  ragged.order.resize(ragged.rows);
  std::iota(ragged.order.begin(), ragged.order.end(), int64_t{0});
  std::stable_sort(ragged.order.begin(), ragged.order.end(),
                   [&](int64_t i, int64_t j) { return ragged.length(i) > ragged.length(j); });
  ragged.active.assign(steps, 0);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < ragged.lengths[b]; ++t) ragged.active[t] += particles;
  return ragged;
}

template <class Run>
void by_dtype(ScalarType dtype, Run run) {
  if (dtype == ScalarType::Float) run(float{});
  else run(double{});
}

}  // namespace dmm
