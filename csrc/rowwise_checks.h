// What the bindings of the rowwise ops share: weights as a list, masks, single steps.
#pragma once

#include <optional>

#include "checks.h"
#include "cpu/dispatch.h"

namespace dmm {

using Tensors = std::vector<Tensor>;

struct Weight {
  const char* name;
  std::vector<int64_t> shape;
};

// The weights of a call, checked against what is expected of each, and contiguous.
inline Tensors dense_weights(const Common& common, const std::vector<Weight>& expected,
                             const Tensors& weights) {
  Tensors dense;
  for (size_t i = 0; i < expected.size(); ++i) {
    common.check(expected[i].name, weights[i], expected[i].shape);
    dense.push_back(torch::stable::contiguous(weights[i]));
  }
  return dense;
}

// `weights` must have so many before a size is read off one of them.
inline void check_number(const Tensors& weights, size_t number) {
  STD_TORCH_CHECK(weights.size() == number, "weights: expected ", number, " tensors, got ", weights.size());
}

// How many outputs a layer has, from its weight [out, in].
inline int64_t outputs_of(const char* name, const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 2, name, ": expected 2 dimensions, got ", describe(weight));
  return weight.size(0);
}

inline Tensors gradients_of(const Tensors& weights) {
  Tensors gradients;
  for (const Tensor& weight : weights) {
    std::vector<int64_t> shape(weight.dim());
    for (int64_t d = 0; d < weight.dim(); ++d) shape[d] = weight.size(d);
    gradients.push_back(torch::stable::new_empty(weight, shape));
  }
  return gradients;
}

template <class S>
S* pointer(const Tensor& t) {
  if constexpr (std::is_const_v<S>)
    return t.const_data_ptr<std::remove_const_t<S>>();
  else
    return t.mutable_data_ptr<S>();
}

// [N, width] as one row of N steps; `t` must outlive the result and have dense rows.
template <class S>
cpu::Rows<const S> steps_of(const Tensor& t) {
  return {{t.const_data_ptr<S>()}, t.stride(0)};
}

// What is observed: [B, T] or [B, T, D], as bytes of 0 and 1.
class ObservationMask {
 public:
  ObservationMask(const std::optional<Tensor>& mask, int64_t batch, int64_t steps, int64_t width) {
    if (!mask) return;
    const Tensor& m = *mask;
    const bool fits = m.is_cpu() && m.scalar_type() == ScalarType::Bool && (m.dim() == 2 || m.dim() == 3) &&
                      m.size(0) == batch && m.size(1) == steps && (m.dim() == 2 || m.size(2) == width);
    STD_TORCH_CHECK(fits, "mask: expected Bool of shape (", batch, ", ", steps, ") or (", batch, ", ", steps,
                    ", ", width, ") on cpu, got ", describe(m));
    held_ = torch::stable::contiguous(m);
  }
  const uint8_t* steps() const { return held_ && held_->dim() == 2 ? bytes() : nullptr; }
  const uint8_t* entries() const { return held_ && held_->dim() == 3 ? bytes() : nullptr; }

 private:
  const uint8_t* bytes() const { return reinterpret_cast<const uint8_t*>(held_->const_data_ptr<bool>()); }
  std::optional<Tensor> held_;
};

}  // namespace dmm
