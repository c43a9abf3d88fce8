#include "combiner_scan.cuh"

#include "launch.cuh"

namespace dmm::cuda {
namespace {

template <class Args>
const char* launch(void (*kernel)(Args), const Args& a, void* stream) {
  const int size = a.cluster_size;
  return launch_clusters(kernel, a, a.ragged.clusters() * size, size, threads(a),
                         static_cast<size_t>(shared_bytes(a)), stream);
}

constexpr int pair(int to, int from) { return 100 * to + from; }

}  // namespace

const char* combiner_scan(const CombinerScan& a, void* stream) {
  switch (pair(a.to_units.in_registers, a.from_units.in_registers)) {
    case pair(0, 0): return launch(combiner_scan_fwd_kernel<0, 0>, a, stream);
    case pair(2, 2): return launch(combiner_scan_fwd_kernel<2, 2>, a, stream);
    case pair(2, 4): return launch(combiner_scan_fwd_kernel<2, 4>, a, stream);
    default: return "no kernel keeps that many weights in registers";
  }
}

const char* combiner_scan_backward(const CombinerScanBackward& a, void* stream) {
  switch (pair(a.to_units.in_registers, a.from_units.in_registers)) {
    case pair(0, 0): return launch(combiner_scan_bwd_kernel<0, 0>, a, stream);
    case pair(2, 2): return launch(combiner_scan_bwd_kernel<2, 2>, a, stream);
    case pair(4, 2): return launch(combiner_scan_bwd_kernel<4, 2>, a, stream);
    default: return "no kernel keeps that many weights in registers";
  }
}

}  // namespace dmm::cuda
