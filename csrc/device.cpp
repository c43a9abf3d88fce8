// Queries of a device for the planner of the scans (dmm_fast/cuda/plan.py).
#include "checks.h"
#ifdef DMM_FAST_CUDA
#include <torch/csrc/stable/accelerator.h>

#include "cuda/device.h"
#endif

namespace dmm {

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def("_clusters_at_once(int device, int cluster_size, int shared_bytes) -> int");
}

#ifdef DMM_FAST_CUDA
namespace {

// A cluster lies within one part (GPC) of the device, and their number cannot be queried, so CUDA is asked directly.
int64_t clusters_at_once(int64_t device, int64_t cluster_size, int64_t shared_bytes) {
  STD_TORCH_CHECK(cluster_size >= 2 && cluster_size <= 16, "cluster_size: expected an int from 2 to 16, got ",
                  cluster_size);
  const torch::stable::accelerator::DeviceGuard guard(static_cast<int32_t>(device));
  int count = 0;
  const char* error =
      cuda::clusters_at_once(static_cast<int>(cluster_size), static_cast<int>(shared_bytes), &count);
  STD_TORCH_CHECK(error == nullptr, "clusters of ", cluster_size, " blocks with ", shared_bytes,
                  " bytes of shared memory: ", error ? error : "");
  return count;
}

}  // namespace

// The op has no tensor argument, so no device can select an implementation.
STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CompositeExplicitAutograd, m) {
  m.impl("_clusters_at_once", TORCH_BOX(&clusters_at_once));
}
#endif

}  // namespace dmm
