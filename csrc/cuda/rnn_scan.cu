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

}  // namespace

const char* rnn_scan(const RnnScan& a, void* stream) {
  switch (a.tiling.in_registers) {
    case 0: return launch(rnn_scan_fwd_kernel<0>, a, stream);
    case 2: return launch(rnn_scan_fwd_kernel<2>, a, stream);
    case 4: return launch(rnn_scan_fwd_kernel<4>, a, stream);
    case 6: return launch(rnn_scan_fwd_kernel<6>, a, stream);
    case 8: return launch(rnn_scan_fwd_kernel<8>, a, stream);
    default: return "no kernel keeps that many weights in registers";
  }
}

const char* rnn_scan_backward(const RnnScanBackward& a, void* stream) {
  switch (a.tiling.in_registers) {
    case 0: return launch(rnn_scan_bwd_kernel<0>, a, stream);
    case 2: return launch(rnn_scan_bwd_kernel<2>, a, stream);
    case 4: return launch(rnn_scan_bwd_kernel<4>, a, stream);
    case 6: return launch(rnn_scan_bwd_kernel<6>, a, stream);
    case 8: return launch(rnn_scan_bwd_kernel<8>, a, stream);
    default: return "no kernel keeps that many weights in registers";
  }
}

}  // namespace dmm::cuda
