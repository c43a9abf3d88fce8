#include "combiner_rows_kernels.cuh"
#include "launch.cuh"

namespace dmm::cuda {
namespace {

template <class Args>
const char* launch(const Args& a, void* stream) {
  const auto kernel = rows_kernel(a);
  if (kernel == nullptr) return kNoScanKernel;
  const int size = a.cluster_size;
  return launch_clusters(kernel, a, a.ragged.clusters() * size, size, kMostThreads,
                         static_cast<size_t>(shared_bytes(a)), stream);
}

}  // namespace

const char* combiner_scan(const CombinerRows& a, void* stream) { return launch(a, stream); }
const char* combiner_scan_backward(const CombinerRowsBackward& a, void* stream) { return launch(a, stream); }

}  // namespace dmm::cuda
