#include "exchange_floor.cuh"

#include "launch.cuh"

namespace dmm::cuda {

const char* exchange_floor(const ExchangeFloor& a, void* stream) {
  return launch_clusters(exchange_floor_kernel, a, a.clusters * a.cluster_size, a.cluster_size, a.threads,
                         static_cast<size_t>(shared_bytes(a)), stream);
}

const char* clusters_at_once(int cluster_size, int shared_bytes, int* count) {
  ClusterLaunch launch;
  cudaError_t error = launch.prepare(exchange_floor_kernel, cluster_size, cluster_size, 256,
                                     static_cast<size_t>(shared_bytes));
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(count, exchange_floor_kernel, &launch.config);
  return text_of(error);
}

}  // namespace dmm::cuda
