// The gated transition for CPU tensors: z [P, B, T, Z], z_0 [P, B, Z], its twelve weights, lengths [B]; or
// single steps z_prev [N, Z].
#include "rowwise_checks.h"

namespace dmm {
namespace {

struct Weights {
  int64_t latents, gate_units, mean_units;
  Tensors dense;

  Weights(const Common& common, int64_t Z, const Tensors& weights) : latents(Z) {
    check_number(weights, 12);
    gate_units = outputs_of("w_gate_in", weights[0]);
    mean_units = outputs_of("w_mean_in", weights[4]);
    const int64_t G = gate_units, R = mean_units;
    dense = dense_weights(common,
                          {{"w_gate_in", {G, Z}},
                           {"b_gate_in", {G}},
                           {"w_gate_out", {Z, G}},
                           {"b_gate_out", {Z}},
                           {"w_mean_in", {R, Z}},
                           {"b_mean_in", {R}},
                           {"w_mean_out", {Z, R}},
                           {"b_mean_out", {Z}},
                           {"w_scale", {Z, Z}},
                           {"b_scale", {Z}},
                           {"w_loc", {Z, Z}},
                           {"b_loc", {Z}}},
                          weights);
  }

  template <class S>
  cpu::TransitionTensors<S> of(const Tensors& t) const {
    const auto p = [&](size_t i) { return pointer<S>(t[i]); };
    return {latents, gate_units, mean_units, p(0), p(1), p(2),  p(3), p(4),
            p(5),    p(6),       p(7),       p(8), p(9), p(10), p(11)};
  }
};

// A chain's arguments, checked and with dense rows.
struct Args {
  Common common;
  int64_t P, B, T, Z;
  Weights weights;
  Tensor z, z_0, lengths;

  Args(const Tensor& z_, const Tensor& z_0_, const Tensors& weights_, const Tensor& lengths_)
      : common((check_first("z", z_, 4), z_)),
        P(z_.size(0)),
        B(z_.size(1)),
        T(z_.size(2)),
        Z(z_.size(3)),
        weights(common, Z, weights_),
        z(with_dense_rows(z_)),
        z_0((common.check("z_0", z_0_, {P, B, Z}), with_dense_rows(z_0_))),
        lengths(torch::stable::contiguous(lengths_)) {
    check_lengths(lengths_, B, T);
  }

  Tensor chain_like(const char* name, const Tensor& t) const {
    common.check(name, t, {P, B, T, Z});
    return with_dense_rows(t);
  }
  Tensor rows_like(const char* name, const Tensor& t) const {
    common.check(name, t, {P, B});
    return torch::stable::contiguous(t);
  }
  Tensor make(std::initializer_list<int64_t> shape) const { return torch::stable::new_empty(z, shape); }

  template <class S>
  cpu::Chain<S> chain() const {
    return {{P * B, B, T, lengths.const_data_ptr<int64_t>(), nullptr},
            rows_of<const S>(z),
            rows_of<const S>(z_0)};
  }
};

Tensor transition_log_prob(const Tensor& z, const Tensor& z_0, Tensors weights, const Tensor& lengths) {
  const Args a(z, z_0, weights, lengths);
  const Tensor out = a.make({a.P, a.B});
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.transition_log_prob(a.chain<S>(), a.weights.of<const S>(a.weights.dense),
                                                  pointer<S>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensors> transition_log_prob_backward(const Tensor& dout_, const Tensor& z,
                                                                 const Tensor& z_0, Tensors weights,
                                                                 const Tensor& lengths) {
  const Args a(z, z_0, weights, lengths);
  const Tensor dout = a.rows_like("dout", dout_), dz = a.make({a.P, a.B, a.T, a.Z}),
               dz_0 = a.make({a.P, a.B, a.Z});
  const Tensors dw = gradients_of(a.weights.dense);
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.transition_log_prob_backward(
        a.chain<S>(), a.weights.of<const S>(a.weights.dense), pointer<const S>(dout),
        {pointer<S>(dz), pointer<S>(dz_0)}, a.weights.of<S>(dw));
  });
  return {dz, dz_0, dw};
}

Tensor transition_kl(const Tensor& z, const Tensor& loc_, const Tensor& pre_scale_, const Tensor& z_0,
                     Tensors weights, const Tensor& lengths) {
  const Args a(z, z_0, weights, lengths);
  const Tensor loc = a.chain_like("loc", loc_), pre_scale = a.chain_like("pre_scale", pre_scale_);
  const Tensor out = a.make({a.P, a.B});
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.transition_kl(a.chain<S>(),
                                            {rows_of<const S>(loc), rows_of<const S>(pre_scale)},
                                            a.weights.of<const S>(a.weights.dense), pointer<S>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensors> transition_kl_backward(
    const Tensor& dout_, const Tensor& z, const Tensor& loc_, const Tensor& pre_scale_, const Tensor& z_0,
    Tensors weights, const Tensor& lengths) {
  const Args a(z, z_0, weights, lengths);
  const Tensor dout = a.rows_like("dout", dout_), loc = a.chain_like("loc", loc_),
               pre_scale = a.chain_like("pre_scale", pre_scale_);
  const auto make = [&] { return a.make({a.P, a.B, a.T, a.Z}); };
  const Tensor dz = make(), dloc = make(), dpre_scale = make(), dz_0 = a.make({a.P, a.B, a.Z});
  const Tensors dw = gradients_of(a.weights.dense);
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.transition_kl_backward(
        a.chain<S>(), {rows_of<const S>(loc), rows_of<const S>(pre_scale)},
        a.weights.of<const S>(a.weights.dense), pointer<const S>(dout), {pointer<S>(dz), pointer<S>(dz_0)},
        pointer<S>(dloc), pointer<S>(dpre_scale), a.weights.of<S>(dw));
  });
  return {dz, dloc, dpre_scale, dz_0, dw};
}

std::tuple<Tensor, Tensor> gated_transition(const Tensor& z_prev_, Tensors weights_) {
  check_first("z_prev", z_prev_, 2);
  const int64_t N = z_prev_.size(0), Z = z_prev_.size(1);
  const Weights weights(Common(z_prev_), Z, weights_);
  const Tensor z_prev = with_dense_rows(z_prev_);
  const Tensor loc = torch::stable::new_empty(z_prev, {N, Z}),
               scale = torch::stable::new_empty(z_prev, {N, Z});
  by_dtype(z_prev.scalar_type(), [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.gated_transition(N, steps_of<S>(z_prev), weights.of<const S>(weights.dense),
                                               pointer<S>(loc), pointer<S>(scale));
  });
  return {loc, scale};
}

std::tuple<Tensor, Tensors> gated_transition_backward(const Tensor& dloc_, const Tensor& dscale_,
                                                      const Tensor& z_prev_, Tensors weights_) {
  check_first("z_prev", z_prev_, 2);
  const int64_t N = z_prev_.size(0), Z = z_prev_.size(1);
  const Common common(z_prev_);
  const Weights weights(common, Z, weights_);
  common.check("dloc", dloc_, {N, Z});
  common.check("dscale", dscale_, {N, Z});
  const Tensor z_prev = with_dense_rows(z_prev_), dloc = with_dense_rows(dloc_),
               dscale = with_dense_rows(dscale_);
  const Tensor dz_prev = torch::stable::new_empty(z_prev, {N, Z});
  const Tensors dw = gradients_of(weights.dense);
  by_dtype(common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.gated_transition_backward(
        N, steps_of<S>(z_prev), weights.of<const S>(weights.dense), steps_of<S>(dloc), steps_of<S>(dscale),
        pointer<S>(dz_prev), weights.of<S>(dw));
  });
  return {dz_prev, dw};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def("transition_log_prob(Tensor z, Tensor z_0, Tensor[] weights, Tensor lengths) -> Tensor");
  m.def(
      "transition_log_prob_backward(Tensor dout, Tensor z, Tensor z_0, Tensor[] weights, Tensor lengths)"
      " -> (Tensor dz, Tensor dz_0, Tensor[] dweights)");
  m.def(
      "transition_kl(Tensor z, Tensor loc, Tensor pre_scale, Tensor z_0, Tensor[] weights, Tensor lengths)"
      " -> Tensor");
  m.def(
      "transition_kl_backward(Tensor dout, Tensor z, Tensor loc, Tensor pre_scale, Tensor z_0, Tensor[] "
      "weights,"
      " Tensor lengths) -> (Tensor dz, Tensor dloc, Tensor dpre_scale, Tensor dz_0, Tensor[] dweights)");
  m.def("gated_transition(Tensor z_prev, Tensor[] weights) -> (Tensor loc, Tensor scale)");
  m.def(
      "gated_transition_backward(Tensor dloc, Tensor dscale, Tensor z_prev, Tensor[] weights)"
      " -> (Tensor dz_prev, Tensor[] dweights)");
}

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CPU, m) {
  m.impl("transition_log_prob", TORCH_BOX(&transition_log_prob));
  m.impl("transition_log_prob_backward", TORCH_BOX(&transition_log_prob_backward));
  m.impl("transition_kl", TORCH_BOX(&transition_kl));
  m.impl("transition_kl_backward", TORCH_BOX(&transition_kl_backward));
  m.impl("gated_transition", TORCH_BOX(&gated_transition));
  m.impl("gated_transition_backward", TORCH_BOX(&gated_transition_backward));
}

}  // namespace dmm
