// combiner_scan under the emulator, for tensors of torch on the CPU.
#include "tensors.h"

#include "../cuda/combiner_scan.cuh"
#include "combiner_rows.h"

namespace dmm::emulator {
namespace {

// Calls `with(to, from)`: the plan's two tiles, of either kind.
template <class With>
void with_tiles(const cuda::Plan& plan, With with) {
  if (cuda::has_lane_tiles(plan)) with(cuda::lane_tile_of(plan, 0), cuda::lane_tile_of(plan, 1));
  else with(cuda::tiling_of(plan, 0), cuda::tiling_of(plan, 1));
}

void run(const std::string& call, const cuda::CombinerRows& a, const Options& options) { combiner_rows(call, a, options); }
void run(const std::string& call, const cuda::CombinerRowsBackward& a, const Options& options) {
  combiner_rows(call, a, options);
}
void run(const std::string& call, const cuda::CombinerScan& a, const Options& options) {
  const bool exists = cuda::with_combiner_kernel(a.to_units, a.from_units, [&](auto to, auto from) {
    run_scan(call, a, cuda::threads(a), options, cuda::combiner_scan_fwd_kernel<to, from>);
  });
  if (!exists) throw std::invalid_argument(cuda::kNoScanKernel);
}
void run(const std::string& call, const cuda::CombinerScanBackward& a, const Options& options) {
  const bool exists = cuda::with_combiner_kernel(a.from_units, a.to_units, [&](auto from, auto to) {
    run_scan(call, a, cuda::threads(a), options, cuda::combiner_scan_bwd_kernel<to, from>);
  });
  if (!exists) throw std::invalid_argument(cuda::kNoScanKernel);
}

void combiner_scan(py::object base, py::object eps, py::object z_q_0, py::object w_z, py::object b_z, py::object w_loc,
                   py::object w_scale, py::object lengths, const cuda::Plan& plan, py::object z, py::object loc,
                   py::object pre_scale, py::object g, const Options& options) {
  with_tiles(plan, [&](auto to, auto from) {
    const cuda::CombinerScanBy<decltype(to)> a{ragged(eps, lengths, plan), static_cast<int>(plan[2]), to,
                                               from, size(w_z, 0), size(w_z, 1),
                                               matrix(w_z), matrix(w_loc), matrix(w_scale),
                                               data<float>(b_z), data<float>(base), sequences(eps),
                                               sequences(z_q_0), data<float>(z), data<float>(loc),
                                               data<float>(pre_scale), data<float>(g)};
    run("combiner_scan with plan " + cuda::describe(plan), a, options);
  });
}

void combiner_scan_backward(py::object dz, py::object dloc, py::object dpre_scale, py::object eps, py::object pre_scale,
                            py::object g, py::object w_z, py::object w_loc, py::object w_scale, py::object lengths,
                            const cuda::Plan& plan, py::object dh, py::object da, py::object dout, py::object deps,
                            py::object dz_q_0, const Options& options) {
  with_tiles(plan, [&](auto to, auto from) {
    const cuda::CombinerScanBackwardBy<decltype(to)> a{ragged(eps, lengths, plan), static_cast<int>(plan[2]), to,
                                                       from, size(w_z, 0), size(w_z, 1),
                                                       matrix(w_z), matrix(w_loc), matrix(w_scale),
                                                       sequences(dz), sequences(dloc), sequences(dpre_scale),
                                                       sequences(eps), sequences(pre_scale), data<float>(g),
                                                       data<float>(dh), data<float>(da), data<float>(dout),
                                                       data<float>(deps), data<float>(dz_q_0)};
    run("combiner_scan_backward with plan " + cuda::describe(plan), a, options);
  });
}

}  // namespace

void bind_combiner_scan(py::module_& m) {
  m.def("combiner_scan", &combiner_scan);
  m.def("combiner_scan_backward", &combiner_scan_backward);
}

}  // namespace dmm::emulator
