#include "device.h"

#include "cluster.cuh"
#include "launch.cuh"

namespace dmm::cuda {

// Never launched. CUDA reports the number of clusters for a given kernel; this one has dynamic shared memory like the scans,
// and so few registers that nothing else limits the number.
__global__ void cluster_kernel() {
  DMM_SHARED(float, shared);
  shared[threadIdx.x] = 0.0f;
  Cluster{}.sync();
}

const char* clusters_at_once(int cluster_size, int shared_bytes, int* count) {
  ClusterLaunch launch;
  cudaError_t error =
      launch.prepare(cluster_kernel, cluster_size, cluster_size, 256, static_cast<size_t>(shared_bytes));
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(count, cluster_kernel, &launch.config);
  return text_of(error);
}

}  // namespace dmm::cuda
