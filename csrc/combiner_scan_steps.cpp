// The sequential part of combiner_scan for CUDA tensors: base, dout [P, B, T, 2 Z], eps [P, B, T, Z],
// z_q_0 [P, B, Z], g, da [P, B, T, H], the combiner's weights, lengths [B]. A plan says how the work is cut up:
// dmm_fast/cuda/plan.py makes it.
#include "checks.h"
#ifdef DMM_FAST_CUDA
#include "cuda/combiner_scan.h"
#include "cuda_args.h"
#include "exchange_launch.h"

#include <type_traits>
#endif

namespace dmm {

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def(
      "combiner_scan_steps(Tensor base, Tensor eps, Tensor z_q_0, Tensor w_z, Tensor b_z, Tensor w_loc,"
      " Tensor w_scale, Tensor lengths, int[] plan, bool keep_g)"
      " -> (Tensor z, Tensor loc, Tensor pre_scale, Tensor g)");
  m.def(
      "combiner_scan_steps_backward(Tensor dz, Tensor dloc, Tensor dpre_scale, Tensor eps, Tensor pre_scale,"
      " Tensor g, Tensor w_z, Tensor w_loc, Tensor w_scale, Tensor lengths, int[] plan)"
      " -> (Tensor dh, Tensor da, Tensor dout, Tensor deps, Tensor dz_q_0)");
}

#ifdef DMM_FAST_CUDA
namespace {

using Plan = std::vector<int64_t>;

struct Sizes {
  int64_t P, B, T, H, Z;
};

Sizes check(const OnDevice& common, const Tensor& eps, const Tensor& w_z, const Tensor& w_loc, const Tensor& w_scale,
            const Tensor& lengths) {
  STD_TORCH_CHECK(w_z.dim() == 2, "w_z: expected 2 dimensions, got ", describe(w_z));
  const Sizes s{eps.size(0), eps.size(1), eps.size(2), w_z.size(0), eps.size(3)};
  common.check("w_z", w_z, {s.H, s.Z});
  common.check("w_loc", w_loc, {s.Z, s.H});
  common.check("w_scale", w_scale, {s.Z, s.H});
  common.check("lengths", lengths, {s.B}, ScalarType::Long);
  return s;
}

// Calls `with(to, from)`: the plan's parts of the matrices [inputs, units] and [units, outputs], of either kind.
template <class With>
void with_tiles(const Plan& plan, int64_t inputs, int64_t units, int64_t outputs, With with) {
  const auto checked = [&](const char* fault, const auto& tile_of) {
    const auto fits = [&](const auto& to, const auto& from) {
      return cuda::shares_outputs(to, plan[2], inputs, units) && cuda::shares_inputs(from, plan[2], units, outputs) &&
             to.outputs == from.inputs;
    };
    check_plan(plan, fault, [&] { return fits(tile_of(plan, 0), tile_of(plan, 1)); });
    with(tile_of(plan, 0), tile_of(plan, 1));
  };
  if (cuda::has_lane_tiles(plan)) checked(cuda::fault_of_lane_tiles(plan), cuda::lane_tile_of);
  else checked(cuda::fault(plan, 2), cuda::tiling_of);
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Four combiner_scan_steps(const Tensor& base_, const Tensor& eps, const Tensor& z_q_0, const Tensor& w_z,
                         const Tensor& b_z_, const Tensor& w_loc, const Tensor& w_scale, const Tensor& lengths,
                         Plan plan, bool keep_g) {
  const OnDevice common("eps", eps, 4);
  const Sizes s = check(common, eps, w_z, w_loc, w_scale, lengths);
  common.check("base", base_, {s.P, s.B, s.T, 2 * s.Z});
  common.check("z_q_0", z_q_0, {s.P, s.B, s.Z});
  common.check("b_z", b_z_, {s.H});
  const Tensor base = torch::stable::contiguous(base_), b_z = torch::stable::contiguous(b_z_);
  const auto make = [&] { return torch::stable::new_empty(eps, {s.P, s.B, s.T, s.Z}); };
  const Tensor z = make(), loc = make(), pre_scale = make();
  const Tensor g = keep_g ? torch::stable::new_empty(eps, {s.P, s.B, s.T, s.H}) : torch::stable::new_empty(eps, {0});
  if (z.numel() == 0) return {z, loc, pre_scale, g};
  with_tiles(plan, s.Z, s.H, 2 * s.Z, [&](const auto& to, const auto& from) {
    const cuda::CombinerScanBy<std::decay_t<decltype(to)>> args{on_device_ragged_of(eps, lengths, plan),
                                                                static_cast<int>(plan[2]),
                                                                to,
                                                                from,
                                                                static_cast<int>(s.H),
                                                                static_cast<int>(s.Z),
                                                                matrix_of(w_z),
                                                                matrix_of(w_loc),
                                                                matrix_of(w_scale),
                                                                b_z.const_data_ptr<float>(),
                                                                base.const_data_ptr<float>(),
                                                                sequences_of(eps),
                                                                sequences_of(z_q_0),
                                                                z.mutable_data_ptr<float>(),
                                                                loc.mutable_data_ptr<float>(),
                                                                pre_scale.mutable_data_ptr<float>(),
                                                                keep_g ? g.mutable_data_ptr<float>() : nullptr};
    launch_exchange(eps, "combiner_scan with plan " + cuda::describe(plan), args,
                    [](const auto& a, void* stream) { return cuda::combiner_scan(a, stream); });
  });
  return {z, loc, pre_scale, g};
}

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Five combiner_scan_steps_backward(const Tensor& dz, const Tensor& dloc, const Tensor& dpre_scale, const Tensor& eps,
                                  const Tensor& pre_scale, const Tensor& g_, const Tensor& w_z, const Tensor& w_loc,
                                  const Tensor& w_scale, const Tensor& lengths, Plan plan) {
  const OnDevice common("eps", eps, 4);
  const Sizes s = check(common, eps, w_z, w_loc, w_scale, lengths);
  const std::vector<int64_t> chain{s.P, s.B, s.T, s.Z};
  common.check("dz", dz, chain);
  common.check("dloc", dloc, chain);
  common.check("dpre_scale", dpre_scale, chain);
  common.check("pre_scale", pre_scale, chain);
  common.check("g", g_, {s.P, s.B, s.T, s.H});
  const Tensor g = torch::stable::contiguous(g_);
  const auto make = [&](std::initializer_list<int64_t> shape) { return torch::stable::new_empty(eps, shape); };
  const Tensor dh = make({s.P, s.B, s.T, s.H}), da = make({s.P, s.B, s.T, s.H}), dout = make({s.P, s.B, s.T, 2 * s.Z}),
               deps = make({s.P, s.B, s.T, s.Z}), dz_q_0 = make({s.P, s.B, s.Z});
  if (dz_q_0.numel() == 0) return {dh, da, dout, deps, dz_q_0};
  with_tiles(plan, 2 * s.Z, s.H, s.Z, [&](const auto& to, const auto& from) {
    const cuda::CombinerScanBackwardBy<std::decay_t<decltype(to)>> args{on_device_ragged_of(eps, lengths, plan),
                                                                        static_cast<int>(plan[2]),
                                                                        to,
                                                                        from,
                                                                        static_cast<int>(s.H),
                                                                        static_cast<int>(s.Z),
                                                                        matrix_of(w_z),
                                                                        matrix_of(w_loc),
                                                                        matrix_of(w_scale),
                                                                        sequences_of(dz),
                                                                        sequences_of(dloc),
                                                                        sequences_of(dpre_scale),
                                                                        sequences_of(eps),
                                                                        sequences_of(pre_scale),
                                                                        g.const_data_ptr<float>(),
                                                                        dh.mutable_data_ptr<float>(),
                                                                        da.mutable_data_ptr<float>(),
                                                                        dout.mutable_data_ptr<float>(),
                                                                        deps.mutable_data_ptr<float>(),
                                                                        dz_q_0.mutable_data_ptr<float>()};
    launch_exchange(eps, "combiner_scan_backward with plan " + cuda::describe(plan), args,
                    [](const auto& a, void* stream) { return cuda::combiner_scan_backward(a, stream); });
  });
  return {dh, da, dout, deps, dz_q_0};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CUDA, m) {
  m.impl("combiner_scan_steps", TORCH_BOX(&combiner_scan_steps));
  m.impl("combiner_scan_steps_backward", TORCH_BOX(&combiner_scan_steps_backward));
}
#endif

}  // namespace dmm
