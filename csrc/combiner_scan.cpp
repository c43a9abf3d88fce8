// combiner_scan for CPU tensors: h [P, B, T, H], eps [P, B, T, Z], z_q_0 [P, B, Z], the combiner's six
// weights, lengths [B]. For the backward it keeps g [P, B, T, H] where that is wanted; else g is (0,).
#include "checks.h"
#include "cpu/dispatch.h"

namespace dmm {
namespace {

struct Sizes {
  int64_t P, B, T, H, Z;
};

Sizes check(const Tensor& h, const Tensor& eps, const Tensor& z_q_0, const Tensor& w_z, const Tensor& w_loc,
            const Tensor& w_scale, const Tensor& lengths) {
  check_first("h", h, 4);
  STD_TORCH_CHECK(eps.dim() == 4, "eps: expected 4 dimensions, got ", describe(eps));
  const Sizes s{h.size(0), h.size(1), h.size(2), h.size(3), eps.size(3)};
  const Common common(h);
  common.check("eps", eps, {s.P, s.B, s.T, s.Z});
  common.check("z_q_0", z_q_0, {s.P, s.B, s.Z});
  common.check("w_z", w_z, {s.H, s.Z});
  common.check("w_loc", w_loc, {s.Z, s.H});
  common.check("w_scale", w_scale, {s.Z, s.H});
  check_lengths(lengths, s.B, s.T);
  return s;
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Four combiner_scan(const Tensor& h_, const Tensor& eps_, const Tensor& z_q_0_, const Tensor& w_z_, const Tensor& b_z_,
                   const Tensor& w_loc_, const Tensor& b_loc_, const Tensor& w_scale_, const Tensor& b_scale_,
                   const Tensor& lengths_, bool keep_g) {
  const Sizes s = check(h_, eps_, z_q_0_, w_z_, w_loc_, w_scale_, lengths_);
  Common(h_).check("b_z", b_z_, {s.H});
  Common(h_).check("b_loc", b_loc_, {s.Z});
  Common(h_).check("b_scale", b_scale_, {s.Z});
  const Tensor h = with_dense_rows(h_), eps = with_dense_rows(eps_), z_q_0 = with_dense_rows(z_q_0_);
  const Tensor w_z = torch::stable::contiguous(w_z_), b_z = torch::stable::contiguous(b_z_),
               w_loc = torch::stable::contiguous(w_loc_), b_loc = torch::stable::contiguous(b_loc_),
               w_scale = torch::stable::contiguous(w_scale_), b_scale = torch::stable::contiguous(b_scale_),
               lengths = torch::stable::contiguous(lengths_);
  const auto make = [&] { return torch::stable::new_empty(h, {s.P, s.B, s.T, s.Z}); };
  const Tensor z = make(), loc = make(), pre_scale = make();
  const Tensor g = keep_g ? torch::stable::new_empty(h, {s.P, s.B, s.T, s.H}) : torch::stable::new_empty(h, {0});
  by_dtype(h.scalar_type(), [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().combiner_scan(
        {ragged_of(s.P, s.B, s.T, lengths), s.H, s.Z, rows_of<const S>(h), rows_of<const S>(eps),
         rows_of<const S>(z_q_0), w_z.const_data_ptr<S>(), b_z.const_data_ptr<S>(), w_loc.const_data_ptr<S>(),
         b_loc.const_data_ptr<S>(), w_scale.const_data_ptr<S>(), b_scale.const_data_ptr<S>(), rows_of<S>(z),
         rows_of<S>(loc), rows_of<S>(pre_scale), keep_g, keep_g ? rows_of<S>(g) : cpu::Rows<S>{}});
  });
  return {z, loc, pre_scale, g};
}

using Nine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Nine combiner_scan_backward(const Tensor& dz_, const Tensor& dloc_, const Tensor& dpre_scale_, const Tensor& h_,
                            const Tensor& eps_, const Tensor& z_q_0_, const Tensor& z_, const Tensor& pre_scale_,
                            const Tensor& g_, const Tensor& w_z_, const Tensor& w_loc_, const Tensor& w_scale_,
                            const Tensor& lengths_) {
  const Sizes s = check(h_, eps_, z_q_0_, w_z_, w_loc_, w_scale_, lengths_);
  const Common common(h_);
  const std::vector<int64_t> chain{s.P, s.B, s.T, s.Z};
  common.check("dz", dz_, chain);
  common.check("dloc", dloc_, chain);
  common.check("dpre_scale", dpre_scale_, chain);
  common.check("z", z_, chain);
  common.check("pre_scale", pre_scale_, chain);
  common.check("g", g_, {s.P, s.B, s.T, s.H});
  const Tensor dz = with_dense_rows(dz_), dloc = with_dense_rows(dloc_), dpre_scale = with_dense_rows(dpre_scale_),
               h = with_dense_rows(h_), eps = with_dense_rows(eps_), z_q_0 = with_dense_rows(z_q_0_),
               z = with_dense_rows(z_), pre_scale = with_dense_rows(pre_scale_), g = with_dense_rows(g_);
  const Tensor w_z = torch::stable::contiguous(w_z_), w_loc = torch::stable::contiguous(w_loc_),
               w_scale = torch::stable::contiguous(w_scale_), lengths = torch::stable::contiguous(lengths_);
  const auto make = [&](std::initializer_list<int64_t> shape) { return torch::stable::new_empty(h, shape); };
  const Tensor dh = make({s.P, s.B, s.T, s.H}), deps = make({s.P, s.B, s.T, s.Z}), dz_q_0 = make({s.P, s.B, s.Z});
  const Tensor dw_z = make({s.H, s.Z}), db_z = make({s.H}), dw_loc = make({s.Z, s.H}), db_loc = make({s.Z}),
               dw_scale = make({s.Z, s.H}), db_scale = make({s.Z});
  by_dtype(h.scalar_type(), [&](auto scalar) {
    using S = decltype(scalar);
    cpu::kernels<S>().combiner_scan_backward(
        {ragged_of(s.P, s.B, s.T, lengths), s.H, s.Z, rows_of<const S>(dz), rows_of<const S>(dloc),
         rows_of<const S>(dpre_scale), rows_of<const S>(h), rows_of<const S>(eps), rows_of<const S>(z_q_0),
         rows_of<const S>(z), rows_of<const S>(pre_scale), rows_of<const S>(g), w_z.const_data_ptr<S>(),
         w_loc.const_data_ptr<S>(), w_scale.const_data_ptr<S>(), rows_of<S>(dh), rows_of<S>(deps),
         dz_q_0.mutable_data_ptr<S>(), dw_z.mutable_data_ptr<S>(), db_z.mutable_data_ptr<S>(),
         dw_loc.mutable_data_ptr<S>(), db_loc.mutable_data_ptr<S>(), dw_scale.mutable_data_ptr<S>(),
         db_scale.mutable_data_ptr<S>()});
  });
  return {dh, deps, dz_q_0, dw_z, db_z, dw_loc, db_loc, dw_scale, db_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def(
      "combiner_scan(Tensor h, Tensor eps, Tensor z_q_0, Tensor w_z, Tensor b_z, Tensor w_loc, Tensor b_loc,"
      " Tensor w_scale, Tensor b_scale, Tensor lengths, bool keep_g)"
      " -> (Tensor z, Tensor loc, Tensor pre_scale, Tensor g)");
  m.def(
      "combiner_scan_backward(Tensor dz, Tensor dloc, Tensor dpre_scale, Tensor h, Tensor eps, Tensor z_q_0,"
      " Tensor z, Tensor pre_scale, Tensor g, Tensor w_z, Tensor w_loc, Tensor w_scale, Tensor lengths)"
      " -> (Tensor dh, Tensor deps, Tensor dz_q_0, Tensor dw_z, Tensor db_z, Tensor dw_loc, Tensor db_loc,"
      " Tensor dw_scale, Tensor db_scale)");
}

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CPU, m) {
  m.impl("combiner_scan", TORCH_BOX(&combiner_scan));
  m.impl("combiner_scan_backward", TORCH_BOX(&combiner_scan_backward));
}

}  // namespace dmm
