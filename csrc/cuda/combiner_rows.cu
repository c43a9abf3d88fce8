#include "combiner_rows_kernels.cuh"
#include "launch.cuh"

namespace dmm::cuda {
namespace {

template <class Args>
const char* launch(const Args& a, void* stream) {
  const auto kernel = rows_kernel(a);
  return kernel == nullptr ? kNoScanKernel : launch_scan(kernel, a, kMostThreads, stream);
}

}  // namespace

const char* combiner_scan(const CombinerRows& a, void* stream) {
  return a.mailbox.bytes ? combiner_scan_words(a, stream) : launch(a, stream);
}
const char* combiner_scan_backward(const CombinerRowsBackward& a, void* stream) {
  return a.mailbox.bytes ? combiner_scan_words_backward(a, stream) : launch(a, stream);
}

}  // namespace dmm::cuda
