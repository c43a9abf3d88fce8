// combiner_scan under the emulator, for tensors of torch on the CPU.
#include "tensors.h"

#include "../cuda/combiner_scan.cuh"
#include "combiner_rows.h"
#include "combiner_tensor.h"

namespace dmm::emulator {
namespace {

template <template <class> class ScanBy>
void run(const std::string& call, const cuda::Plan& plan, ScanBy<cuda::LaneTile> a, const Options& options) {
  if (!cuda::are_lanes_by_words(plan)) return combiner_rows(call, a, options);
  const int word_bytes = cuda::word_bytes(cuda::sums_of_latent(a));
  const Words words(cuda::combiner_mailbox(a), a.ragged.clusters(), word_bytes, options);
  a.mailbox = words.mailbox;
  combiner_words(call, a, options);
}
void run(const std::string& call, const cuda::Plan&, const cuda::CombinerTensor& a, const Options& options) {
  combiner_tensor(call, a, options);
}
void run(const std::string& call, const cuda::Plan&, const cuda::CombinerTensorBackward& a, const Options& options) {
  combiner_tensor(call, a, options);
}
void run(const std::string& call, const cuda::Plan&, const cuda::CombinerScan& a, const Options& options) {
  const bool exists = cuda::with_combiner_kernel(a.to_units, a.from_units, [&](auto to, auto from) {
    run_scan(call, a, cuda::threads(a), options, cuda::combiner_scan_fwd_kernel<to, from>);
  });
  if (!exists) throw std::invalid_argument(cuda::kNoScanKernel);
}
void run(const std::string& call, const cuda::Plan&, const cuda::CombinerScanBackward& a, const Options& options) {
  const bool exists = cuda::with_combiner_kernel(a.from_units, a.to_units, [&](auto from, auto to) {
    run_scan(call, a, cuda::threads(a), options, cuda::combiner_scan_bwd_kernel<to, from>);
  });
  if (!exists) throw std::invalid_argument(cuda::kNoScanKernel);
}

template <class Launch>
void bind(py::module_& m, const std::string& name) {
  m.def(name.c_str(), [name](const Options& options, const py::kwargs& given) {
    const auto a = launch_of<Launch>(given);
    cuda::with_combiner_tiles(a.plan, [&](const auto& to, const auto& from) {
      run(name + " with plan " + cuda::describe(a.plan), a.plan, cuda::scan_of(a, to, from), options);
    });
  });
}

}  // namespace

void bind_combiner_scan(py::module_& m) {
  bind<cuda::LaunchCombinerScan<Tensor>>(m, "combiner_scan");
  bind<cuda::LaunchCombinerScanBackward<Tensor>>(m, "combiner_scan_backward");
}

}  // namespace dmm::emulator
