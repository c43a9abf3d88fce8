#include "rnn_scan_warps.h"

#include "tensors.h"

#include "../cuda/rnn_scan_warps.cuh"
#include "../cuda/warp_cuts.h"

namespace dmm::emulator {
namespace {

// A few of the cuts that nvcc compiles: each that goes its own way in the source.
template <class Args, class Run>
void by_cut(const Args& a, Run run) {
  const int cut = 100 * ((a.units + cuda::kWarpChunk - 1) / cuda::kWarpChunk) + 10 * a.ragged.rows_per_cluster +
                  a.ragged.rows_per_group;
  if (a.per_warp == 4 && cut == 111) return run(cuda::WarpCut<1, 4, 1, 1>{});
  if (a.per_warp == 4 && cut == 132) return run(cuda::WarpCut<1, 4, 3, 2>{});
  if (a.per_warp == 4 && cut == 233) return run(cuda::WarpCut<2, 4, 3, 3>{});
  if (a.per_warp == 5 && cut == 132) return run(cuda::WarpCut<1, 5, 3, 2>{});
  if (a.per_warp == 5 && cut == 142) return run(cuda::WarpCut<1, 5, 4, 2>{});
  throw std::invalid_argument("no kernel is cut up like that");
}

template <int kChunks, int kOutputs, int kRows, int kPerGroup>
auto kernel_of(const cuda::RnnScan&, cuda::WarpCut<kChunks, kOutputs, kRows, kPerGroup>) {
  return cuda::rnn_scan_warps_fwd_kernel<kChunks, kOutputs, kRows, kPerGroup>;
}
template <int kChunks, int kOutputs, int kRows, int kPerGroup>
auto kernel_of(const cuda::RnnScanBackward&, cuda::WarpCut<kChunks, kOutputs, kRows, kPerGroup>) {
  return cuda::rnn_scan_warps_bwd_kernel<kChunks, kOutputs, kRows, kPerGroup>;
}

template <class Args>
void run_any(const std::string& call, const Args& a, const Options& options) {
  by_cut(a, [&](auto cut) { run_scan(call, a, threads(a), options, kernel_of(a, cut)); });
}

}  // namespace

void run_by_warps(const std::string& call, const cuda::RnnScan& a, const Options& options) {
  run_any(call, a, options);
}
void run_by_warps(const std::string& call, const cuda::RnnScanBackward& a, const Options& options) {
  run_any(call, a, options);
}

}  // namespace dmm::emulator
