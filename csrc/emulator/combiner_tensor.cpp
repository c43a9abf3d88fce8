// The kernels of combiner_scan on tensor cores, under the emulator.
#include "combiner_tensor.h"

#include "../cuda/combiner_tensor_kernels.cuh"
#include "exchange.h"

namespace dmm::emulator {

template <class Args>
void combiner_tensor(const std::string& call, const Args& a, const Options& options) {
  const auto kernel = cuda::tensor_kernel(a);
  if (kernel == nullptr) throw std::invalid_argument(cuda::kNoScanKernel);
  const int blocks = a.ragged.clusters() * a.cluster_size;
  run_exchange(call, a, {blocks, a.cluster_size, cuda::kMostThreads, shared_bytes(a), options}, kernel);
}
template void combiner_tensor(const std::string&, const cuda::CombinerTensor&, const Options&);
template void combiner_tensor(const std::string&, const cuda::CombinerTensorBackward&, const Options&);

}  // namespace dmm::emulator
