#include "rnn_scan.cuh"

#include "launch.cuh"

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
  switch (100 * tiling.tensor_tiles + tiling.in_registers) {
    case 0: return run(InFloat32<0>{});
    case 2: return run(InFloat32<2>{});
    case 4: return run(InFloat32<4>{});
    case 6: return run(InFloat32<6>{});
    case 8: return run(InFloat32<8>{});
    case 104: return run(OnTensorCores<1, 4>{});
    case 208: return run(OnTensorCores<2, 8>{});
    case 310: return run(OnTensorCores<3, 10>{});
    default: return "no kernel keeps that many weights in registers";
  }
}

}  // namespace

const char* rnn_scan(const RnnScan& a, void* stream) {
  if (a.by_warps) return rnn_scan_warps(a, stream);
  return by_tiling(a.tiling, [&](auto how) { return launch(rnn_scan_fwd_kernel<decltype(how)>, a, stream); });
}

const char* rnn_scan_backward(const RnnScanBackward& a, void* stream) {
  if (a.by_warps) return rnn_scan_warps_backward(a, stream);
  return by_tiling(a.tiling, [&](auto how) { return launch(rnn_scan_bwd_kernel<decltype(how)>, a, stream); });
}

}  // namespace dmm::cuda
