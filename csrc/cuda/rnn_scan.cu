#include "rnn_scan.cuh"

#include "launch.cuh"

namespace dmm::cuda {
namespace {

template <class Args>
const char* launch(void (*kernel)(Args), const Args& a, void* stream) {
  const int size = a.cluster_size;
  return launch_clusters(kernel, a, a.ragged.clusters() * size, size, a.tiling.threads(),
                         static_cast<size_t>(shared_bytes(a)), stream);
}

}  // namespace

const char* rnn_scan(const RnnScan& a, void* stream) {
  if (a.warp_tile.chunks) return rnn_scan_warps(a, stream);
  const char* error = kNoScanKernel;
  with_rnn_kernel(a.tiling, [&](auto how) { error = launch(rnn_scan_fwd_kernel<decltype(how)>, a, stream); });
  return error;
}

const char* rnn_scan_backward(const RnnScanBackward& a, void* stream) {
  if (a.warp_tile.chunks) return rnn_scan_warps_backward(a, stream);
  const char* error = kNoScanKernel;
  with_rnn_kernel(a.tiling, [&](auto how) { error = launch(rnn_scan_bwd_kernel<decltype(how)>, a, stream); });
  return error;
}

}  // namespace dmm::cuda
