#include "rnn_scan_warps.h"

#include "tensors.h"

#include "../cuda/rnn_scan_warps.cuh"

namespace dmm::emulator {
namespace {

template <class K>
auto kernel_of(const cuda::RnnScan&, K) {
  return cuda::rnn_scan_warps_fwd_kernel<K::kChunks, K::kOutputs, K::kKept, K::kRows, K::kSeveral>;
}
template <class K>
auto kernel_of(const cuda::RnnScanBackward&, K) {
  return cuda::rnn_scan_warps_bwd_kernel<K::kChunks, K::kOutputs, K::kKept, K::kRows, K::kSeveral>;
}

}  // namespace

template <class Args>
void run_by_warps(const std::string& call, const Args& a, const Options& options) {
  const bool exists = cuda::with_warp_kernel(a.warp_tile, a.ragged.groups() > 1, [&](auto k) {
    run_scan(call, a, threads(a), options, kernel_of(a, k));
  });
  if (!exists) throw std::invalid_argument(cuda::kNoScanKernel);
}
template void run_by_warps(const std::string&, const cuda::RnnScan&, const Options&);
template void run_by_warps(const std::string&, const cuda::RnnScanBackward&, const Options&);

}  // namespace dmm::emulator
