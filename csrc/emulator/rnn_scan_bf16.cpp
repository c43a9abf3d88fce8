#include "rnn_scan_bf16.h"

#include "tensors.h"

#include "../cuda/rnn_scan_bf16.cuh"

namespace dmm::emulator {
namespace {

template <class K>
auto kernel_of(const cuda::RnnScan&, K) {
  return cuda::rnn_scan_bf16_fwd_kernel<K>;
}
template <class K>
auto kernel_of(const cuda::RnnScanBackward&, K) {
  return cuda::rnn_scan_bf16_bwd_kernel<K>;
}

}  // namespace

template <class Args>
void run_in_bf16(const std::string& call, const Args& a, const Options& options) {
  if (!goes_by_fours(a)) throw std::invalid_argument(cuda::kNotByFours);
  const bool exists =
      cuda::with_bf16_kernel(a.bf16_tile, [&](auto k) { run_scan(call, a, threads(a), options, kernel_of(a, k)); });
  if (!exists) throw std::invalid_argument(cuda::kNoScanKernel);
}
template void run_in_bf16(const std::string&, const cuda::RnnScan&, const Options&);
template void run_in_bf16(const std::string&, const cuda::RnnScanBackward&, const Options&);

}  // namespace dmm::emulator
