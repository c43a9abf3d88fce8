// The kernels of combiner_scan that take one row at a time, under the emulator.
#include "combiner_rows.h"

#include "../cuda/combiner_rows_kernels.cuh"
#include "exchange.h"

namespace dmm::emulator {

template <class Args>
void combiner_rows(const std::string& call, const Args& a, const Options& options) {
  const auto kernel = cuda::rows_kernel(a);
  if (kernel == nullptr) throw std::invalid_argument(cuda::kNoScanKernel);
  const int blocks = a.ragged.clusters() * a.cluster_size;
  run_exchange(call, a, {blocks, a.cluster_size, cuda::kMostThreads, shared_bytes(a), options}, kernel);
}
template void combiner_rows(const std::string&, const cuda::CombinerRows&, const Options&);
template void combiner_rows(const std::string&, const cuda::CombinerRowsBackward&, const Options&);

}  // namespace dmm::emulator
