// The combiner for CPU tensors: z [P, B, T, Z], h [P, B, T, H], z_q_0 [P, B, Z], its six weights, lengths
// [B]; or single steps z_prev [N, Z] and h [N, H].
#include "rowwise_checks.h"

namespace dmm {
namespace {

struct Weights {
  int64_t latents, units;
  Tensors dense;

  Weights(const Common& common, int64_t Z, int64_t H, const Tensors& weights) : latents(Z), units(H) {
    check_number(weights, 6);
    dense = dense_weights(common,
                          {{"w_z", {H, Z}},
                           {"b_z", {H}},
                           {"w_loc", {Z, H}},
                           {"b_loc", {Z}},
                           {"w_scale", {Z, H}},
                           {"b_scale", {Z}}},
                          weights);
  }

  template <class S>
  cpu::CombinerTensors<S> of(const Tensors& t) const {
    const auto p = [&](size_t i) { return pointer<S>(t[i]); };
    return {latents, units, p(0), p(1), p(2), p(3), p(4), p(5)};
  }
};

// A chain's arguments, checked and with dense rows.
struct Args {
  Common common;
  int64_t P, B, T, Z, H;
  Weights weights;
  Tensor z, h, z_q_0, lengths;

  Args(const Tensor& z_, const Tensor& h_, const Tensor& z_q_0_, const Tensors& weights_,
       const Tensor& lengths_)
      : common((check_first("z", z_, 4), check_first("h", h_, 4), z_)),
        P(z_.size(0)),
        B(z_.size(1)),
        T(z_.size(2)),
        Z(z_.size(3)),
        H(h_.size(3)),
        weights(common, Z, H, weights_),
        z(with_dense_rows(z_)),
        h((common.check("h", h_, {P, B, T, H}), with_dense_rows(h_))),
        z_q_0((common.check("z_q_0", z_q_0_, {P, B, Z}), with_dense_rows(z_q_0_))),
        lengths(torch::stable::contiguous(lengths_)) {
    check_lengths(lengths_, B, T);
  }

  template <class S>
  cpu::Chain<S> chain() const {
    return {{P * B, B, T, lengths.const_data_ptr<int64_t>(), nullptr},
            rows_of<const S>(z),
            rows_of<const S>(z_q_0)};
  }
};

Tensor combiner_log_prob(const Tensor& z, const Tensor& h, const Tensor& z_q_0, Tensors weights,
                         const Tensor& lengths) {
  const Args a(z, h, z_q_0, weights, lengths);
  const Tensor out = torch::stable::new_empty(a.z, {a.P, a.B});
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.combiner_log_prob(a.chain<S>(), rows_of<const S>(a.h),
                                                a.weights.of<const S>(a.weights.dense), pointer<S>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensors> combiner_log_prob_backward(const Tensor& dout_, const Tensor& z,
                                                                       const Tensor& h, const Tensor& z_q_0,
                                                                       Tensors weights,
                                                                       const Tensor& lengths) {
  const Args a(z, h, z_q_0, weights, lengths);
  a.common.check("dout", dout_, {a.P, a.B});
  const Tensor dout = torch::stable::contiguous(dout_),
               dz = torch::stable::new_empty(a.z, {a.P, a.B, a.T, a.Z}),
               dh = torch::stable::new_empty(a.z, {a.P, a.B, a.T, a.H}),
               dz_q_0 = torch::stable::new_empty(a.z, {a.P, a.B, a.Z});
  const Tensors dw = gradients_of(a.weights.dense);
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.combiner_log_prob_backward(
        a.chain<S>(), rows_of<const S>(a.h), a.weights.of<const S>(a.weights.dense), pointer<const S>(dout),
        {pointer<S>(dz), pointer<S>(dz_q_0)}, pointer<S>(dh), a.weights.of<S>(dw));
  });
  return {dz, dh, dz_q_0, dw};
}

std::tuple<Tensor, Tensor> combiner(const Tensor& z_prev_, const Tensor& h_, Tensors weights_) {
  check_first("z_prev", z_prev_, 2);
  check_first("h", h_, 2);
  const int64_t N = z_prev_.size(0), Z = z_prev_.size(1), H = h_.size(1);
  const Common common(z_prev_);
  common.check("h", h_, {N, H});
  const Weights weights(common, Z, H, weights_);
  const Tensor z_prev = with_dense_rows(z_prev_), h = with_dense_rows(h_);
  const Tensor loc = torch::stable::new_empty(z_prev, {N, Z}),
               scale = torch::stable::new_empty(z_prev, {N, Z});
  by_dtype(common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.combiner(N, steps_of<S>(z_prev), steps_of<S>(h),
                                       weights.of<const S>(weights.dense), pointer<S>(loc),
                                       pointer<S>(scale));
  });
  return {loc, scale};
}

std::tuple<Tensor, Tensor, Tensors> combiner_backward(const Tensor& dloc_, const Tensor& dscale_,
                                                      const Tensor& z_prev_, const Tensor& h_,
                                                      Tensors weights_) {
  check_first("z_prev", z_prev_, 2);
  check_first("h", h_, 2);
  const int64_t N = z_prev_.size(0), Z = z_prev_.size(1), H = h_.size(1);
  const Common common(z_prev_);
  common.check("h", h_, {N, H});
  common.check("dloc", dloc_, {N, Z});
  common.check("dscale", dscale_, {N, Z});
  const Weights weights(common, Z, H, weights_);
  const Tensor z_prev = with_dense_rows(z_prev_), h = with_dense_rows(h_), dloc = with_dense_rows(dloc_),
               dscale = with_dense_rows(dscale_);
  const Tensor dz_prev = torch::stable::new_empty(z_prev, {N, Z}),
               dh = torch::stable::new_empty(z_prev, {N, H});
  const Tensors dw = gradients_of(weights.dense);
  by_dtype(common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.combiner_backward(
        N, steps_of<S>(z_prev), steps_of<S>(h), weights.of<const S>(weights.dense), steps_of<S>(dloc),
        steps_of<S>(dscale), pointer<S>(dz_prev), pointer<S>(dh), weights.of<S>(dw));
  });
  return {dz_prev, dh, dw};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def("combiner_log_prob(Tensor z, Tensor h, Tensor z_q_0, Tensor[] weights, Tensor lengths) -> Tensor");
  m.def(
      "combiner_log_prob_backward(Tensor dout, Tensor z, Tensor h, Tensor z_q_0, Tensor[] weights, Tensor "
      "lengths)"
      " -> (Tensor dz, Tensor dh, Tensor dz_q_0, Tensor[] dweights)");
  m.def("combiner(Tensor z_prev, Tensor h, Tensor[] weights) -> (Tensor loc, Tensor scale)");
  m.def(
      "combiner_backward(Tensor dloc, Tensor dscale, Tensor z_prev, Tensor h, Tensor[] weights)"
      " -> (Tensor dz_prev, Tensor dh, Tensor[] dweights)");
}

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CPU, m) {
  m.impl("combiner_log_prob", TORCH_BOX(&combiner_log_prob));
  m.impl("combiner_log_prob_backward", TORCH_BOX(&combiner_log_prob_backward));
  m.impl("combiner", TORCH_BOX(&combiner));
  m.impl("combiner_backward", TORCH_BOX(&combiner_backward));
}

}  // namespace dmm
