// input_projection for CPU tensors: x [P, B, T, D], w [H, D], b [H], lengths [B].
#include "checks.h"
#include "cpu/dispatch.h"

namespace dmm {
namespace {

struct Sizes {
  int64_t P, B, T, D, H;
};

Sizes check(const Tensor& x, const Tensor& w, const Tensor& lengths) {
  check_first("x", x, 4);
  STD_TORCH_CHECK(w.dim() == 2, "w: expected 2 dimensions, got ", describe(w));
  const Sizes s{x.size(0), x.size(1), x.size(2), x.size(3), w.size(0)};
  Common(x).check("w", w, {s.H, s.D});
  check_lengths(lengths, s.B, s.T);
  return s;
}

Tensor input_projection(const Tensor& x_, const Tensor& w_, const Tensor& b_, const Tensor& lengths_) {
  const Sizes s = check(x_, w_, lengths_);
  Common(x_).check("b", b_, {s.H});
  const Tensor x = with_dense_rows(x_), w = torch::stable::contiguous(w_), b = torch::stable::contiguous(b_),
               lengths = torch::stable::contiguous(lengths_);
  const Tensor out = torch::stable::new_empty(x, {s.P, s.B, s.T, s.H});
  by_dtype(x.scalar_type(), [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().input_projection({ragged_of(s.P, s.B, s.T, lengths), s.D, s.H, rows_of<const S>(x),
                                        w.const_data_ptr<S>(), b.const_data_ptr<S>(), rows_of<S>(out)});
  });
  return out;
}

// Without `with_dx`, dx is empty.
std::tuple<Tensor, Tensor, Tensor> input_projection_backward(const Tensor& dout_, const Tensor& x_, const Tensor& w_,
                                                             const Tensor& lengths_, bool with_dx) {
  const Sizes s = check(x_, w_, lengths_);
  Common(x_).check("dout", dout_, {s.P, s.B, s.T, s.H});
  const Tensor dout = with_dense_rows(dout_), x = with_dense_rows(x_), w = torch::stable::contiguous(w_),
               lengths = torch::stable::contiguous(lengths_);
  const int64_t steps = with_dx ? s.T : 0;
  const Tensor dx = torch::stable::new_empty(x, {s.P, s.B, steps, s.D}),
               dw = torch::stable::new_empty(x, {s.H, s.D}), db = torch::stable::new_empty(x, {s.H});
  by_dtype(x.scalar_type(), [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().input_projection_backward({ragged_of(s.P, s.B, s.T, lengths), s.D, s.H, rows_of<const S>(dout),
                                                 rows_of<const S>(x), w.const_data_ptr<S>(), with_dx,
                                                 rows_of<S>(dx), dw.mutable_data_ptr<S>(), db.mutable_data_ptr<S>()});
  });
  return {dx, dw, db};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def("input_projection(Tensor x, Tensor w, Tensor b, Tensor lengths) -> Tensor");
  m.def(
      "input_projection_backward(Tensor dout, Tensor x, Tensor w, Tensor lengths, bool with_dx)"
      " -> (Tensor dx, Tensor dw, Tensor db)");
}

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CPU, m) {
  m.impl("input_projection", TORCH_BOX(&input_projection));
  m.impl("input_projection_backward", TORCH_BOX(&input_projection_backward));
}

}  // namespace dmm
