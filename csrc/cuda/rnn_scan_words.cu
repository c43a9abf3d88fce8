#include "launch.cuh"
#include "rnn_scan_warps.cuh"
#include "scan_kernels.h"

namespace dmm::cuda {

const char* rnn_scan_words(const RnnScan& a, void* stream) {
  const char* error = kNoScanKernel;
  with_words_kernel(a.warp_tile, a.ragged.groups() > 1, [&](auto k) {
    using K = decltype(k);
    const auto kernel = rnn_scan_words_fwd_kernel<K::kChunks, K::kOutputs, K::kKept, K::kRows, K::kSeveral>;
    error = launch_teams(kernel, a, threads(a), stream);
  });
  return error;
}

}  // namespace dmm::cuda
