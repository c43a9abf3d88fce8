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
  if (!a.gathered && cut == 111) return run(cuda::WarpCut<1, 1, 1, false>{});
  if (!a.gathered && cut == 132) return run(cuda::WarpCut<1, 3, 2, false>{});
  if (!a.gathered && cut == 233) return run(cuda::WarpCut<2, 3, 3, false>{});
  if (a.gathered && cut == 132) return run(cuda::WarpCut<1, 3, 2, true>{});
  if (a.gathered && cut == 144) return run(cuda::WarpCut<1, 4, 4, true>{});
  throw std::invalid_argument("no kernel is cut up like that");
}

template <int kChunks, int kRows, int kPerGroup, bool kGathered>
auto kernel_of(const cuda::RnnScan&, cuda::WarpCut<kChunks, kRows, kPerGroup, kGathered>) {
  return cuda::rnn_scan_warps_fwd_kernel<kChunks, kRows, kPerGroup, kGathered>;
}
template <int kChunks, int kRows, int kPerGroup, bool kGathered>
auto kernel_of(const cuda::RnnScanBackward&, cuda::WarpCut<kChunks, kRows, kPerGroup, kGathered>) {
  return cuda::rnn_scan_warps_bwd_kernel<kChunks, kRows, kPerGroup, kGathered>;
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
