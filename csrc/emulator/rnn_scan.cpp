// rnn_scan under the emulator, for tensors of torch on the CPU.
#include "tensors.h"

#include "../cuda/rnn_scan.cuh"
#include "rnn_scan_warps.h"

namespace dmm::emulator {
namespace {

template <class Run>
void by_tiling(const cuda::Tiling& tiling, Run run) {
  if (tiling.tensor_tiles == 1 && tiling.in_registers == 4) run(cuda::OnTensorCores<1, 4>{});
  else if (tiling.tensor_tiles == 2 && tiling.in_registers == 8) run(cuda::OnTensorCores<2, 8>{});
  else by_registers<0, 2>(tiling.in_registers, [&](auto quads) { run(cuda::InFloat32<quads>{}); });
}

void rnn_scan(py::object x_proj, py::object w_hh, py::object h_0, py::object lengths, bool tanh,
              const cuda::Plan& plan, py::object h, const Options& options) {
  const cuda::RnnScan a{ragged(x_proj, lengths, plan), static_cast<int>(plan[2]), cuda::rnn_tiling_of(plan),
                        size(x_proj, 3), tanh,          matrix(w_hh),
                        sequences(x_proj), sequences(h_0), data<float>(h),   {},                 cuda::is_by_warps(plan), cuda::is_gathered(plan)};
  const std::string call = "rnn_scan with plan " + cuda::describe(plan);
  if (a.by_warps) return run_by_warps(call, a, options);
  by_tiling(a.tiling, [&](auto how) {
    run_scan(call, a, a.tiling.threads(), options,
             cuda::rnn_scan_fwd_kernel<decltype(how)>);
  });
}

void rnn_scan_backward(py::object dh, py::object h, py::object w_hh, py::object lengths, bool tanh,
                       const cuda::Plan& plan, py::object dx_proj, py::object dh_0, const Options& options) {
  const cuda::RnnScanBackward a{ragged(h, lengths, plan), static_cast<int>(plan[2]), cuda::rnn_tiling_of(plan),
                                size(h, 3), tanh,          matrix(w_hh),
                                sequences(dh), sequences(h), data<float>(dx_proj), data<float>(dh_0), {}, cuda::is_by_warps(plan), cuda::is_gathered(plan)};
  const std::string call = "rnn_scan_backward with plan " + cuda::describe(plan);
  if (a.by_warps) return run_by_warps(call, a, options);
  by_tiling(a.tiling, [&](auto how) {
    run_scan(call, a, a.tiling.threads(), options,
             cuda::rnn_scan_bwd_kernel<decltype(how)>);
  });
}

template <class Args>
int64_t shared_bytes_of(const cuda::Plan& plan) {
  Args a{};
  a.ragged.rows_per_cluster = static_cast<int>(plan[0]);
  a.ragged.rows_per_group = static_cast<int>(plan[1]);
  a.tiling = cuda::rnn_tiling_of(plan);
  a.by_warps = cuda::is_by_warps(plan);
  return shared_bytes(a);
}

}  // namespace

void bind_rnn_scan(py::module_& m) {
  m.def("rnn_scan_shared_bytes", &shared_bytes_of<cuda::RnnScan>);
  m.def("rnn_scan_backward_shared_bytes", &shared_bytes_of<cuda::RnnScanBackward>);
  m.def("rnn_scan", &rnn_scan);
  m.def("rnn_scan_backward", &rnn_scan_backward);
}

}  // namespace dmm::emulator
