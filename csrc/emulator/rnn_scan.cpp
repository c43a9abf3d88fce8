// rnn_scan under the emulator, for tensors of torch on the CPU.
#include "tensors.h"

#include "../cuda/rnn_scan.cuh"
#include "rnn_scan_warps.h"

namespace dmm::emulator {
namespace {

template <class Args, class KernelOf>
void run_any(const std::string& call, const Args& a, const Options& options, KernelOf kernel_of) {
  if (a.warp_tile.chunks) return run_by_warps(call, a, options);
  const bool exists = cuda::with_rnn_kernel(a.tiling, [&](auto how) {
    run_scan(call, a, a.tiling.threads(), options, kernel_of(how));
  });
  if (!exists) throw std::invalid_argument(cuda::kNoScanKernel);
}

void rnn_scan(py::object x_proj, py::object w_hh, py::object h_0, py::object lengths, bool tanh,
              const cuda::Plan& plan, py::object h, const Options& options) {
  const cuda::RnnScan a{ragged(x_proj, lengths, plan), static_cast<int>(plan[2]), cuda::rnn_tiling_of(plan),
                        size(x_proj, 3), tanh,          matrix(w_hh),
                        sequences(x_proj), sequences(h_0), data<float>(h),   {},                 cuda::warp_tile_of(plan)};
  run_any("rnn_scan with plan " + cuda::describe(plan), a, options,
          [](auto how) { return cuda::rnn_scan_fwd_kernel<decltype(how)>; });
}

void rnn_scan_backward(py::object dh, py::object h, py::object w_hh, py::object lengths, bool tanh,
                       const cuda::Plan& plan, py::object dx_proj, py::object dh_0, const Options& options) {
  const cuda::RnnScanBackward a{ragged(h, lengths, plan), static_cast<int>(plan[2]), cuda::rnn_tiling_of(plan),
                                size(h, 3), tanh,          matrix(w_hh),
                                sequences(dh), sequences(h), data<float>(dx_proj), data<float>(dh_0), {}, cuda::warp_tile_of(plan)};
  run_any("rnn_scan_backward with plan " + cuda::describe(plan), a, options,
          [](auto how) { return cuda::rnn_scan_bwd_kernel<decltype(how)>; });
}

}  // namespace

void bind_rnn_scan(py::module_& m) {
  m.def("rnn_scan", &rnn_scan);
  m.def("rnn_scan_backward", &rnn_scan_backward);
}

}  // namespace dmm::emulator
