#include "rnn_scan_warps.h"

#include "tensors.h"

#include "../cuda/rnn_scan_warps.cuh"

namespace dmm::emulator {
namespace {

template <class K>
auto warps_kernel(const cuda::RnnScan&, K) {
  return cuda::rnn_scan_warps_fwd_kernel<K::kChunks, K::kOutputs, K::kKept, K::kRows, K::kSeveral>;
}
template <class K>
auto warps_kernel(const cuda::RnnScanBackward&, K) {
  return cuda::rnn_scan_warps_bwd_kernel<K::kChunks, K::kOutputs, K::kKept, K::kRows, K::kSeveral>;
}
template <class K>
auto words_kernel(const cuda::RnnScan&, K) {
  return cuda::rnn_scan_words_fwd_kernel<K::kChunks, K::kOutputs, K::kKept, K::kRows, K::kSeveral>;
}
template <class K>
auto words_kernel(const cuda::RnnScanBackward&, K) {
  return cuda::rnn_scan_words_bwd_kernel<K::kChunks, K::kOutputs, K::kKept, K::kRows, K::kSeveral>;
}

}  // namespace

template <class Args>
void run_by_warps(const std::string& call, const Args& a, const Options& options) {
  const bool exists = cuda::with_warp_kernel(
      a.warp_tile, a.ragged.groups() > 1, [&](auto k) { run_scan(call, a, threads(a), options, warps_kernel(a, k)); });
  if (!exists) throw std::invalid_argument(cuda::kNoScanKernel);
}
template <class Args>
void run_by_words(const std::string& call, const Args& a, const Options& options) {
  const bool exists = cuda::with_words_kernel(
      a.warp_tile, a.ragged.groups() > 1, [&](auto k) { run_teams(call, a, threads(a), options, words_kernel(a, k)); });
  if (!exists) throw std::invalid_argument(cuda::kNoScanKernel);
}
template void run_by_warps(const std::string&, const cuda::RnnScan&, const Options&);
template void run_by_warps(const std::string&, const cuda::RnnScanBackward&, const Options&);
template void run_by_words(const std::string&, const cuda::RnnScan&, const Options&);
template void run_by_words(const std::string&, const cuda::RnnScanBackward&, const Options&);

}  // namespace dmm::emulator
