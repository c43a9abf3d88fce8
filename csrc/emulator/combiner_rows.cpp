// The kernels of combiner_scan for one or two rows at a time, under the emulator.
#include "combiner_rows.h"

#include "../cuda/combiner_rows_kernels.cuh"
#include "exchange.h"

namespace dmm::emulator {
namespace {

template <class K>
auto words_kernel(const cuda::CombinerRows&, K) { return cuda::combiner_words_fwd_kernel<K>; }
template <class K>
auto words_kernel(const cuda::CombinerRowsBackward&, K) { return cuda::combiner_words_bwd_kernel<K>; }

}  // namespace

template <class Args>
void combiner_rows(const std::string& call, const Args& a, const Options& options) {
  const auto kernel = cuda::rows_kernel(a);
  if (kernel == nullptr) throw std::invalid_argument(cuda::kNoScanKernel);
  const int blocks = a.ragged.clusters() * a.cluster_size;
  run_exchange(call, a, {blocks, a.cluster_size, cuda::kMostThreads, shared_bytes(a), options}, kernel);
}
template <class Args>
void combiner_words(const std::string& call, const Args& a, const Options& options) {
  const bool exists = cuda::with_words_kernel(
      a, [&](auto k) { run_teams(call, a, cuda::kMostThreads, options, words_kernel(a, k)); });
  if (!exists) throw std::invalid_argument(cuda::kNoScanKernel);
}
template void combiner_rows(const std::string&, const cuda::CombinerRows&, const Options&);
template void combiner_rows(const std::string&, const cuda::CombinerRowsBackward&, const Options&);
template void combiner_words(const std::string&, const cuda::CombinerRows&, const Options&);
template void combiner_words(const std::string&, const cuda::CombinerRowsBackward&, const Options&);

}  // namespace dmm::emulator
