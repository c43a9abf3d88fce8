// rnn_scan for CPU tensors: x_proj [P, B, T, H], w_hh [H, H], h_0 [P, B, H], lengths [B].
#include "checks.h"
#include "cpu/dispatch.h"

namespace dmm {
namespace {

cpu::Nonlinearity nonlinearity_of(const std::string& name) {
  STD_TORCH_CHECK(name == "relu" || name == "tanh", "nonlinearity: expected relu or tanh, got ", name);
  return name == "relu" ? cpu::Nonlinearity::relu : cpu::Nonlinearity::tanh;
}

void check(const char* name, const Tensor& x, const Tensor& w_hh, const Tensor& h_0, const Tensor& lengths) {
  check_first(name, x, 4);
  const Common common(x);
  const int64_t units = x.size(3);
  common.check("w_hh", w_hh, {units, units});
  common.check("h_0", h_0, {x.size(0), x.size(1), units});
  check_lengths(lengths, x.size(1), x.size(2));
}

Tensor rnn_scan(const Tensor& x_proj_, const Tensor& w_hh_, const Tensor& h_0_, const Tensor& lengths_,
                std::string nonlinearity) {
  check("x_proj", x_proj_, w_hh_, h_0_, lengths_);
  const cpu::Nonlinearity f = nonlinearity_of(nonlinearity);
  const Tensor x_proj = with_dense_rows(x_proj_), w_hh = torch::stable::contiguous(w_hh_),
               h_0 = with_dense_rows(h_0_), lengths = torch::stable::contiguous(lengths_);
  const int64_t P = x_proj.size(0), B = x_proj.size(1), T = x_proj.size(2), H = x_proj.size(3);
  const Tensor h = torch::stable::new_empty(x_proj, {P, B, T, H});
  by_dtype(x_proj.scalar_type(), [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rnn_scan({ragged_of(P, B, T, lengths), H, f, rows_of<const S>(x_proj),
                                w_hh.const_data_ptr<S>(), rows_of<const S>(h_0), rows_of<S>(h)});
  });
  return h;
}

std::tuple<Tensor, Tensor, Tensor> rnn_scan_backward(const Tensor& dh_, const Tensor& h_, const Tensor& w_hh_,
                                                     const Tensor& h_0_, const Tensor& lengths_,
                                                     std::string nonlinearity) {
  check("h", h_, w_hh_, h_0_, lengths_);
  const cpu::Nonlinearity f = nonlinearity_of(nonlinearity);
  const int64_t P = h_.size(0), B = h_.size(1), T = h_.size(2), H = h_.size(3);
  Common(h_).check("dh", dh_, {P, B, T, H});
  const Tensor dh = with_dense_rows(dh_), h = with_dense_rows(h_), w_hh = torch::stable::contiguous(w_hh_),
               h_0 = with_dense_rows(h_0_), lengths = torch::stable::contiguous(lengths_);
  const Tensor dx_proj = torch::stable::new_empty(h, {P, B, T, H}), dw_hh = torch::stable::new_empty(h, {H, H}),
               dh_0 = torch::stable::new_empty(h, {P, B, H});
  by_dtype(h.scalar_type(), [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().rnn_scan_backward({ragged_of(P, B, T, lengths), H, f, rows_of<const S>(dh),
                                         rows_of<const S>(h), w_hh.const_data_ptr<S>(), rows_of<const S>(h_0),
                                         rows_of<S>(dx_proj), dw_hh.mutable_data_ptr<S>(),
                                         dh_0.mutable_data_ptr<S>()});
  });
  return {dx_proj, dw_hh, dh_0};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def("rnn_scan(Tensor x_proj, Tensor w_hh, Tensor h_0, Tensor lengths, str nonlinearity) -> Tensor");
  m.def(
      "rnn_scan_backward(Tensor dh, Tensor h, Tensor w_hh, Tensor h_0, Tensor lengths, str nonlinearity)"
      " -> (Tensor dx_proj, Tensor dw_hh, Tensor dh_0)");
}

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CPU, m) {
  m.impl("rnn_scan", TORCH_BOX(&rnn_scan));
  m.impl("rnn_scan_backward", TORCH_BOX(&rnn_scan_backward));
}

}  // namespace dmm
