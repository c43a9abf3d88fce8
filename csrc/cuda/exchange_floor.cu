#include "exchange_floor.cuh"

#include "launch.cuh"

namespace dmm::cuda {

const char* exchange_floor(const ExchangeFloor& a, void* stream) {
  const size_t shared_bytes = sizeof(float) * 2 * a.cluster_size * a.width;
  return launch_clusters(exchange_floor_kernel, a, a.clusters * a.cluster_size, a.cluster_size, a.threads,
                         shared_bytes, stream);
}

}  // namespace dmm::cuda
