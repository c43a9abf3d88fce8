// The emitters for CPU tensors: x [P, B, T, D], z [P, B, T, Z], lengths [B], mask [B, T] or [B, T, D]; or
// single steps z [N, Z]. Six weights make a Bernoulli emitter, eight a Gaussian one.
#include "rowwise_checks.h"

namespace dmm {
namespace {

struct Weights {
  int64_t latents, units, outputs;
  Tensors dense;

  Weights(const Common& common, int64_t Z, const Tensors& weights) : latents(Z) {
    check_number(weights, gaussian(weights) ? 8 : 6);
    units = outputs_of("w_in", weights[0]);
    outputs = outputs_of(gaussian(weights) ? "w_loc" : "w_out", weights[4]);
    const int64_t E = units, D = outputs;
    std::vector<Weight> expected{{"w_in", {E, Z}},
                                 {"b_in", {E}},
                                 {"w_hidden", {E, E}},
                                 {"b_hidden", {E}},
                                 {gaussian(weights) ? "w_loc" : "w_out", {D, E}},
                                 {gaussian(weights) ? "b_loc" : "b_out", {D}}};
    if (gaussian(weights)) {
      expected.push_back({"w_scale", {D, E}});
      expected.push_back({"b_scale", {D}});
    }
    dense = dense_weights(common, expected, weights);
  }

  static bool gaussian(const Tensors& weights) { return weights.size() == 8; }

  template <class S>
  cpu::EmitterTensors<S> of(const Tensors& t) const {
    const auto p = [&](size_t i) { return i < t.size() ? pointer<S>(t[i]) : nullptr; };
    return {latents, units, outputs, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7)};
  }
};

// Arguments of a log-probability, checked and with dense rows.
struct Args {
  Common common;
  int64_t P, B, T, Z;
  Weights weights;
  int64_t D;
  Tensor x, z, lengths;
  ObservationMask mask;

  Args(const Tensor& x_, const Tensor& z_, const Tensors& weights_, const Tensor& lengths_,
       const std::optional<Tensor>& mask_)
      : common((check_first("z", z_, 4), z_)),
        P(z_.size(0)),
        B(z_.size(1)),
        T(z_.size(2)),
        Z(z_.size(3)),
        weights(common, Z, weights_),
        D(weights.outputs),
        x((common.check("x", x_, {P, B, T, D}), with_dense_rows(x_))),
        z(with_dense_rows(z_)),
        lengths(torch::stable::contiguous(lengths_)),
        mask(mask_, B, T, D) {
    check_lengths(lengths_, B, T);
  }

  template <class S>
  cpu::Observations<S> observations() const {
    return {{{P * B, B, T, lengths.const_data_ptr<int64_t>(), mask.steps()}, D, mask.entries()},
            rows_of<const S>(x)};
  }
};

Tensor emission_log_prob(const Tensor& x, const Tensor& z, Tensors weights, const Tensor& lengths,
                         std::optional<Tensor> mask) {
  const Args a(x, z, weights, lengths, mask);
  const Tensor out = torch::stable::new_empty(a.z, {a.P, a.B});
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.emission_log_prob(a.observations<S>(), rows_of<const S>(a.z),
                                                a.weights.of<const S>(a.weights.dense), pointer<S>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensors> emission_log_prob_backward(const Tensor& dout_, const Tensor& x,
                                                               const Tensor& z, Tensors weights,
                                                               const Tensor& lengths,
                                                               std::optional<Tensor> mask, bool with_dx) {
  const Args a(x, z, weights, lengths, mask);
  a.common.check("dout", dout_, {a.P, a.B});
  const auto shape = with_dx ? std::vector<int64_t>{a.P, a.B, a.T, a.D} : std::vector<int64_t>{0};
  const Tensor dout = torch::stable::contiguous(dout_), dx = torch::stable::new_empty(a.z, shape),
               dz = torch::stable::new_empty(a.z, {a.P, a.B, a.T, a.Z});
  const Tensors dw = gradients_of(a.weights.dense);
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.emission_log_prob_backward(
        a.observations<S>(), rows_of<const S>(a.z), a.weights.of<const S>(a.weights.dense),
        pointer<const S>(dout), with_dx ? pointer<S>(dx) : nullptr, pointer<S>(dz), a.weights.of<S>(dw));
  });
  return {dx, dz, dw};
}

// The logits; or loc and pre_scale.
Tensors emitter(const Tensor& z_, Tensors weights_) {
  check_first("z", z_, 2);
  const int64_t N = z_.size(0);
  const Weights weights(Common(z_), z_.size(1), weights_);
  const Tensor z = with_dense_rows(z_);
  Tensors out{torch::stable::new_empty(z, {N, weights.outputs})};
  if (Weights::gaussian(weights_)) out.push_back(torch::stable::new_empty(z, {N, weights.outputs}));
  by_dtype(z.scalar_type(), [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.emitter(N, steps_of<S>(z), weights.of<const S>(weights.dense),
                                      pointer<S>(out.front()),
                                      out.size() == 2 ? pointer<S>(out.back()) : nullptr);
  });
  return out;
}

std::tuple<Tensor, Tensors> emitter_backward(Tensors dout_, const Tensor& z_, Tensors weights_) {
  check_first("z", z_, 2);
  const int64_t N = z_.size(0);
  const Common common(z_);
  const Weights weights(common, z_.size(1), weights_);
  STD_TORCH_CHECK(dout_.size() == (Weights::gaussian(weights_) ? 2 : 1),
                  "dout: expected a tensor for each output, got ", dout_.size());
  Tensors dout;
  for (const Tensor& t : dout_) {
    common.check("dout", t, {N, weights.outputs});
    dout.push_back(with_dense_rows(t));
  }
  const Tensor z = with_dense_rows(z_), dz = torch::stable::new_empty(z, {N, weights.latents});
  const Tensors dw = gradients_of(weights.dense);
  by_dtype(common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.emitter_backward(N, steps_of<S>(z), weights.of<const S>(weights.dense),
                                               steps_of<S>(dout.front()), steps_of<S>(dout.back()),
                                               pointer<S>(dz), weights.of<S>(dw));
  });
  return {dz, dw};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def("emission_log_prob(Tensor x, Tensor z, Tensor[] weights, Tensor lengths, Tensor? mask) -> Tensor");
  m.def(
      "emission_log_prob_backward(Tensor dout, Tensor x, Tensor z, Tensor[] weights, Tensor lengths, Tensor? "
      "mask,"
      " bool with_dx) -> (Tensor dx, Tensor dz, Tensor[] dweights)");
  m.def("emitter(Tensor z, Tensor[] weights) -> Tensor[]");
  m.def("emitter_backward(Tensor[] dout, Tensor z, Tensor[] weights) -> (Tensor dz, Tensor[] dweights)");
}

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CPU, m) {
  m.impl("emission_log_prob", TORCH_BOX(&emission_log_prob));
  m.impl("emission_log_prob_backward", TORCH_BOX(&emission_log_prob_backward));
  m.impl("emitter", TORCH_BOX(&emitter));
  m.impl("emitter_backward", TORCH_BOX(&emitter_backward));
}

}  // namespace dmm
