#include "launch.cuh"
#include "rnn_scan_bf16.cuh"
#include "scan_kernels.h"

namespace dmm::cuda {

const char* rnn_scan_bf16(const RnnScan& a, void* stream) {
  if (!goes_by_fours(a)) return kNotByFours;
  const char* error = kNoScanKernel;
  with_bf16_kernel(a.bf16_tile, [&](auto k) {
    error = launch_scan(rnn_scan_bf16_fwd_kernel<decltype(k)>, a, threads(a), stream);
  });
  return error;
}

}  // namespace dmm::cuda
