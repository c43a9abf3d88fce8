#include "launch.cuh"
#include "rnn_scan_warps.cuh"
#include "warp_cuts.h"

namespace dmm::cuda {
namespace {

template <int kChunks, int kRows, int kPerGroup, bool kGathered>
auto kernel_of(WarpCut<kChunks, kRows, kPerGroup, kGathered>) {
  return rnn_scan_warps_bwd_kernel<kChunks, kRows, kPerGroup, kGathered>;
}

}  // namespace

const char* rnn_scan_warps_backward(const RnnScanBackward& a, void* stream) {
  const char* error = "no kernel is cut up like that";
  by_warp_cut(a, [&](auto cut) {
    error = launch_clusters(kernel_of(cut), a, a.ragged.clusters() * a.cluster_size, a.cluster_size, threads(a),
                            static_cast<size_t>(shared_bytes(a)), stream);
  });
  return error;
}

}  // namespace dmm::cuda
