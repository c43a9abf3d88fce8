#include "rnn_scan.cuh"

#include "launch.cuh"

namespace dmm::cuda {

const char* rnn_scan(const RnnScan& a, void* stream) {
  if (a.mailbox.bytes) return rnn_scan_words(a, stream);
  if (a.bf16_tile.warps) return rnn_scan_bf16(a, stream);
  if (a.warp_tile.chunks) return rnn_scan_warps(a, stream);
  const char* error = kNoScanKernel;
  with_rnn_kernel(a.tiling, [&](auto how) {
    error = launch_scan(rnn_scan_fwd_kernel<decltype(how)>, a, a.tiling.threads(), stream);
  });
  return error;
}

const char* rnn_scan_backward(const RnnScanBackward& a, void* stream) {
  if (a.mailbox.bytes) return rnn_scan_words_backward(a, stream);
  if (a.bf16_tile.warps) return rnn_scan_bf16_backward(a, stream);
  if (a.warp_tile.chunks) return rnn_scan_warps_backward(a, stream);
  const char* error = kNoScanKernel;
  with_rnn_kernel(a.tiling, [&](auto how) {
    error = launch_scan(rnn_scan_bwd_kernel<decltype(how)>, a, a.tiling.threads(), stream);
  });
  return error;
}

}  // namespace dmm::cuda
