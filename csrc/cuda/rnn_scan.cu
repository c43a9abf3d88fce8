#include "rnn_scan.cuh"

#include "launch.cuh"
#include "scan_kernels.h"

namespace dmm::cuda {
namespace {

template <class Args>
const char* launch(void (*kernel)(Args), const Args& a, void* stream) {
  const int size = a.cluster_size;
  return launch_clusters(kernel, a, a.ragged.clusters() * size, size, a.tiling.threads(),
                         static_cast<size_t>(shared_bytes(a)), stream);
}

// Run `How` the tiling says.
template <class Run>
const char* by_tiling(const Tiling& tiling, Run run) {
#define DMM_TRY(quads) \
  if (!tiling.tensor_tiles && tiling.in_registers == quads) return run(InFloat32<quads>{});
  DMM_RNN_KERNELS(DMM_TRY)
#undef DMM_TRY
#define DMM_TRY(tiles, quads) \
  if (tiling.tensor_tiles == tiles && tiling.in_registers == quads) return run(OnTensorCores<tiles, quads>{});
  DMM_RNN_TENSOR_KERNELS(DMM_TRY)
#undef DMM_TRY
  return "no kernel keeps that many weights in registers";
}

}  // namespace

const char* rnn_scan(const RnnScan& a, void* stream) {
  if (a.warp_tile.chunks) return rnn_scan_warps(a, stream);
  return by_tiling(a.tiling, [&](auto how) { return launch(rnn_scan_fwd_kernel<decltype(how)>, a, stream); });
}

const char* rnn_scan_backward(const RnnScanBackward& a, void* stream) {
  if (a.warp_tile.chunks) return rnn_scan_warps_backward(a, stream);
  return by_tiling(a.tiling, [&](auto how) { return launch(rnn_scan_bwd_kernel<decltype(how)>, a, stream); });
}

}  // namespace dmm::cuda
