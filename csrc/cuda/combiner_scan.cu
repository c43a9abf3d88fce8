#include "combiner_scan.cuh"

#include "launch.cuh"

namespace dmm::cuda {
namespace {

template <class Args>
const char* launch(void (*kernel)(Args), const Args& a, void* stream) {
  const int size = a.cluster_size;
  return launch_clusters(kernel, a, a.ragged.clusters() * size, size, threads(a),
                         static_cast<size_t>(shared_bytes(a)), stream);
}

}  // namespace

const char* combiner_scan(const CombinerScan& a, void* stream) {
  const char* error = kNoScanKernel;
  with_combiner_kernel(a.to_units, a.from_units, [&](auto to, auto from) {
    error = launch(combiner_scan_fwd_kernel<to, from>, a, stream);
  });
  return error;
}

const char* combiner_scan_backward(const CombinerScanBackward& a, void* stream) {
  const char* error = kNoScanKernel;
  with_combiner_kernel(a.from_units, a.to_units, [&](auto from, auto to) {
    error = launch(combiner_scan_bwd_kernel<to, from>, a, stream);
  });
  return error;
}

}  // namespace dmm::cuda
