#include "combiner_scan.cuh"

#include "launch.cuh"

namespace dmm::cuda {

const char* combiner_scan(const CombinerScan& a, void* stream) {
  const char* error = kNoScanKernel;
  with_combiner_kernel(a.to_units, a.from_units, [&](auto to, auto from) {
    error = launch_scan(combiner_scan_fwd_kernel<to, from>, a, threads(a), stream);
  });
  return error;
}

const char* combiner_scan_backward(const CombinerScanBackward& a, void* stream) {
  const char* error = kNoScanKernel;
  with_combiner_kernel(a.from_units, a.to_units, [&](auto from, auto to) {
    error = launch_scan(combiner_scan_bwd_kernel<to, from>, a, threads(a), stream);
  });
  return error;
}

}  // namespace dmm::cuda
