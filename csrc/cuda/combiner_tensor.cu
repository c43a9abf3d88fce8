#include "combiner_tensor_kernels.cuh"
#include "launch.cuh"

namespace dmm::cuda {
namespace {

template <class Args>
const char* launch(const Args& a, void* stream) {
  const auto kernel = tensor_kernel(a);
  return kernel == nullptr ? kNoScanKernel : launch_scan(kernel, a, kMostThreads, stream);
}

}  // namespace

const char* combiner_scan(const CombinerTensor& a, void* stream) { return launch(a, stream); }
const char* combiner_scan_backward(const CombinerTensorBackward& a, void* stream) { return launch(a, stream); }

}  // namespace dmm::cuda
