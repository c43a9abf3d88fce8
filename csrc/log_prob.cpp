// Log-densities of given parameters for CPU tensors, all [P, B, T, D]; lengths [B], mask [B, T] or
// [B, T, D].
#include "rowwise_checks.h"

namespace dmm {
namespace {

// The arguments of a call: tensors of one shape, checked and with dense rows.
struct Args {
  Common common;
  int64_t P, B, T, D;
  Tensors tensors;
  Tensor lengths;
  ObservationMask mask;

  Args(const std::vector<std::pair<const char*, Tensor>>& given, const Tensor& lengths_,
       const std::optional<Tensor>& mask_)
      : common((check_first(given[0].first, given[0].second, 4), given[0].second)),
        P(given[0].second.size(0)),
        B(given[0].second.size(1)),
        T(given[0].second.size(2)),
        D(given[0].second.size(3)),
        lengths(torch::stable::contiguous(lengths_)),
        mask(mask_, B, T, D) {
    for (const auto& [name, t] : given) {
      common.check(name, t, {P, B, T, D});
      tensors.push_back(with_dense_rows(t));
    }
    check_lengths(lengths_, B, T);
  }

  Tensor rows_like(const char* name, const Tensor& t) const {
    common.check(name, t, {P, B});
    return torch::stable::contiguous(t);
  }
  Tensor rows() const { return torch::stable::new_empty(tensors[0], {P, B}); }
  Tensor all() const { return torch::stable::new_empty(tensors[0], {P, B, T, D}); }

  cpu::Sequences sequences() const {
    return {{P * B, B, T, lengths.const_data_ptr<int64_t>(), mask.steps()}, D, mask.entries()};
  }
  template <class S>
  cpu::Rows<const S> in(size_t i) const {
    return rows_of<const S>(tensors[i]);
  }
};

Tensor normal_log_prob(const Tensor& value, const Tensor& loc, const Tensor& scale, const Tensor& lengths,
                       std::optional<Tensor> mask) {
  const Args a({{"value", value}, {"loc", loc}, {"scale", scale}}, lengths, mask);
  const Tensor out = a.rows();
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.normal_log_prob(a.sequences(), a.in<S>(0), a.in<S>(1), a.in<S>(2),
                                              pointer<S>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> normal_log_prob_backward(const Tensor& dout_, const Tensor& value,
                                                            const Tensor& loc, const Tensor& scale,
                                                            const Tensor& lengths,
                                                            std::optional<Tensor> mask) {
  const Args a({{"value", value}, {"loc", loc}, {"scale", scale}}, lengths, mask);
  const Tensor dout = a.rows_like("dout", dout_), dvalue = a.all(), dloc = a.all(), dscale = a.all();
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.normal_log_prob_backward(a.sequences(), a.in<S>(0), a.in<S>(1), a.in<S>(2),
                                                       pointer<const S>(dout), pointer<S>(dvalue),
                                                       pointer<S>(dloc), pointer<S>(dscale));
  });
  return {dvalue, dloc, dscale};
}

Tensor bernoulli_log_prob(const Tensor& x, const Tensor& logits, const Tensor& lengths,
                          std::optional<Tensor> mask) {
  const Args a({{"x", x}, {"logits", logits}}, lengths, mask);
  const Tensor out = a.rows();
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.bernoulli_log_prob(a.sequences(), a.in<S>(0), a.in<S>(1), pointer<S>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> bernoulli_log_prob_backward(const Tensor& dout_, const Tensor& x,
                                                       const Tensor& logits, const Tensor& lengths,
                                                       std::optional<Tensor> mask) {
  const Args a({{"x", x}, {"logits", logits}}, lengths, mask);
  const Tensor dout = a.rows_like("dout", dout_), dx = a.all(), dlogits = a.all();
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.bernoulli_log_prob_backward(
        a.sequences(), a.in<S>(0), a.in<S>(1), pointer<const S>(dout), pointer<S>(dx), pointer<S>(dlogits));
  });
  return {dx, dlogits};
}

Tensor drawn_log_prob(const Tensor& eps, const Tensor& pre_scale, const Tensor& lengths) {
  const Args a({{"eps", eps}, {"pre_scale", pre_scale}}, lengths, std::nullopt);
  const Tensor out = a.rows();
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.drawn_log_prob(a.sequences(), a.in<S>(0), a.in<S>(1), pointer<S>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> drawn_log_prob_backward(const Tensor& dout_, const Tensor& eps,
                                                   const Tensor& pre_scale, const Tensor& lengths) {
  const Args a({{"eps", eps}, {"pre_scale", pre_scale}}, lengths, std::nullopt);
  const Tensor dout = a.rows_like("dout", dout_), deps = a.all(), dpre_scale = a.all();
  by_dtype(a.common.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rowwise.drawn_log_prob_backward(a.sequences(), a.in<S>(0), a.in<S>(1),
                                                      pointer<const S>(dout), pointer<S>(deps),
                                                      pointer<S>(dpre_scale));
  });
  return {deps, dpre_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def("normal_log_prob(Tensor value, Tensor loc, Tensor scale, Tensor lengths, Tensor? mask) -> Tensor");
  m.def(
      "normal_log_prob_backward(Tensor dout, Tensor value, Tensor loc, Tensor scale, Tensor lengths, Tensor? "
      "mask)"
      " -> (Tensor dvalue, Tensor dloc, Tensor dscale)");
  m.def("bernoulli_log_prob(Tensor x, Tensor logits, Tensor lengths, Tensor? mask) -> Tensor");
  m.def(
      "bernoulli_log_prob_backward(Tensor dout, Tensor x, Tensor logits, Tensor lengths, Tensor? mask)"
      " -> (Tensor dx, Tensor dlogits)");
  m.def("drawn_log_prob(Tensor eps, Tensor pre_scale, Tensor lengths) -> Tensor");
  m.def(
      "drawn_log_prob_backward(Tensor dout, Tensor eps, Tensor pre_scale, Tensor lengths)"
      " -> (Tensor deps, Tensor dpre_scale)");
}

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CPU, m) {
  m.impl("normal_log_prob", TORCH_BOX(&normal_log_prob));
  m.impl("normal_log_prob_backward", TORCH_BOX(&normal_log_prob_backward));
  m.impl("bernoulli_log_prob", TORCH_BOX(&bernoulli_log_prob));
  m.impl("bernoulli_log_prob_backward", TORCH_BOX(&bernoulli_log_prob_backward));
  m.impl("drawn_log_prob", TORCH_BOX(&drawn_log_prob));
  m.impl("drawn_log_prob_backward", TORCH_BOX(&drawn_log_prob_backward));
}

}  // namespace dmm
