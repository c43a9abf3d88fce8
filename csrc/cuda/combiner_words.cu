#include "combiner_rows.cuh"
#include "launch.cuh"

namespace dmm::cuda {

const char* combiner_scan_words(const CombinerRows& a, void* stream) {
  const char* error = kNoScanKernel;
  with_words_kernel(a, [&](auto k) {
    error = launch_teams(combiner_words_fwd_kernel<decltype(k)>, a, kMostThreads, stream);
  });
  return error;
}

const char* combiner_scan_words_backward(const CombinerRowsBackward& a, void* stream) {
  const char* error = kNoScanKernel;
  with_words_kernel(a, [&](auto k) {
    error = launch_teams(combiner_words_bwd_kernel<decltype(k)>, a, kMostThreads, stream);
  });
  return error;
}

}  // namespace dmm::cuda
