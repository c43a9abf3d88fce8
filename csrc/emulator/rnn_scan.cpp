// rnn_scan under the emulator, for tensors of torch on the CPU.
#include "tensors.h"

#include "../cuda/rnn_scan.cuh"
#include "rnn_scan_bf16.h"
#include "rnn_scan_warps.h"

namespace dmm::emulator {
namespace {

template <class Args, class KernelOf>
void run_any(const std::string& call, const cuda::Plan& plan, Args a, const Options& options, KernelOf kernel_of) {
  if (a.bf16_tile.warps) return run_in_bf16(call, a, options);
  if (cuda::is_by_words(plan)) {
    const Words words(cuda::rnn_scan_mailbox(a), a.ragged.clusters(), cuda::word_bytes(a.warp_tile.rows), options);
    a.mailbox = words.mailbox;
    return run_by_words(call, a, options);
  }
  if (a.warp_tile.chunks) return run_by_warps(call, a, options);
  const bool exists = cuda::with_rnn_kernel(a.tiling, [&](auto how) {
    run_scan(call, a, a.tiling.threads(), options, kernel_of(how));
  });
  if (!exists) throw std::invalid_argument(cuda::kNoScanKernel);
}

void rnn_scan(const Options& options, const py::kwargs& given) {
  const auto a = launch_of<cuda::LaunchRnnScan<Tensor>>(given);
  run_any("rnn_scan with plan " + cuda::describe(a.plan), a.plan, cuda::scan_of(a), options,
          [](auto how) { return cuda::rnn_scan_fwd_kernel<decltype(how)>; });
}

void rnn_scan_backward(const Options& options, const py::kwargs& given) {
  const auto a = launch_of<cuda::LaunchRnnScanBackward<Tensor>>(given);
  run_any("rnn_scan_backward with plan " + cuda::describe(a.plan), a.plan, cuda::scan_of(a), options,
          [](auto how) { return cuda::rnn_scan_bwd_kernel<decltype(how)>; });
}

}  // namespace

void bind_rnn_scan(py::module_& m) {
  m.def("rnn_scan", &rnn_scan);
  m.def("rnn_scan_backward", &rnn_scan_backward);
}

}  // namespace dmm::emulator
