// combiner_scan under the emulator, for tensors of torch on the CPU.
#include "tensors.h"

#include "../cuda/combiner_scan.cuh"

namespace dmm::emulator {
namespace {

void combiner_scan(py::object base, py::object eps, py::object z_q_0, py::object w_z, py::object b_z, py::object w_loc,
                   py::object w_scale, py::object lengths, const cuda::Plan& plan, py::object z, py::object loc,
                   py::object pre_scale, const Options& options) {
  const cuda::CombinerScan a{ragged(eps, lengths, plan), static_cast<int>(plan[2]), cuda::tiling_of(plan, 0),
                             cuda::tiling_of(plan, 1), size(w_z, 0), size(w_z, 1),
                             matrix(w_z), matrix(w_loc), matrix(w_scale),
                             data<float>(b_z), data<float>(base), sequences(eps),
                             sequences(z_q_0), data<float>(z), data<float>(loc),
                             data<float>(pre_scale)};
  by_registers<0, 2>(a.to_units.in_registers, [&](auto quads) {
    run_scan("combiner_scan with plan " + cuda::describe(plan), a, cuda::threads(a), options,
             cuda::combiner_scan_fwd_kernel<quads, quads>);
  });
}

void combiner_scan_backward(py::object dz, py::object dloc, py::object dpre_scale, py::object eps, py::object pre_scale,
                            py::object g, py::object w_z, py::object w_loc, py::object w_scale, py::object lengths,
                            const cuda::Plan& plan, py::object dh, py::object da, py::object dout, py::object deps,
                            py::object dz_q_0, const Options& options) {
  const cuda::CombinerScanBackward a{ragged(eps, lengths, plan), static_cast<int>(plan[2]), cuda::tiling_of(plan, 0),
                                     cuda::tiling_of(plan, 1), size(w_z, 0), size(w_z, 1),
                                     matrix(w_z), matrix(w_loc), matrix(w_scale),
                                     sequences(dz), sequences(dloc), sequences(dpre_scale),
                                     sequences(eps), sequences(pre_scale), data<float>(g),
                                     data<float>(dh), data<float>(da), data<float>(dout),
                                     data<float>(deps), data<float>(dz_q_0)};
  by_registers<0, 2>(a.to_units.in_registers, [&](auto quads) {
    run_scan("combiner_scan_backward with plan " + cuda::describe(plan), a, cuda::threads(a), options,
             cuda::combiner_scan_bwd_kernel<quads, quads>);
  });
}

template <class Args>
int64_t shared_bytes_of(const cuda::Plan& plan, int latents) {
  Args a{};
  a.ragged.rows_per_cluster = static_cast<int>(plan[0]);
  a.ragged.rows_per_group = static_cast<int>(plan[1]);
  a.cluster_size = static_cast<int>(plan[2]);
  a.to_units = cuda::tiling_of(plan, 0);
  a.from_units = cuda::tiling_of(plan, 1);
  a.latents = latents;
  return shared_bytes(a);
}

}  // namespace

void bind_combiner_scan(py::module_& m) {
  m.def("combiner_scan_shared_bytes", &shared_bytes_of<cuda::CombinerScan>);
  m.def("combiner_scan_backward_shared_bytes", &shared_bytes_of<cuda::CombinerScanBackward>);
  m.def("combiner_scan", &combiner_scan);
  m.def("combiner_scan_backward", &combiner_scan_backward);
}

}  // namespace dmm::emulator
