#include "rnn_scan.cuh"

#include "launch.cuh"

namespace dmm::cuda {

const char* rnn_scan(const RnnScan& a, void* stream) {
  if (a.warp_tile.chunks) return rnn_scan_warps(a, stream);
  const char* error = kNoScanKernel;
  with_rnn_kernel(a.tiling, [&](auto how) {
    error = launch_scan(rnn_scan_fwd_kernel<decltype(how)>, a, a.tiling.threads(), stream);
  });
  return error;
}

const char* rnn_scan_backward(const RnnScanBackward& a, void* stream) {
  if (a.warp_tile.chunks) return rnn_scan_warps_backward(a, stream);
  const char* error = kNoScanKernel;
  with_rnn_kernel(a.tiling, [&](auto how) {
    error = launch_scan(rnn_scan_bwd_kernel<decltype(how)>, a, a.tiling.threads(), stream);
  });
  return error;
}

}  // namespace dmm::cuda
