#include "exchange_floor.cuh"

#include "launch.cuh"

namespace dmm::cuda {

const char* exchange_floor(const ExchangeFloor& a, void* stream) {
  return launch_clusters(exchange_floor_kernel, a, a.clusters * a.cluster_size, a.cluster_size, a.threads,
                         static_cast<size_t>(shared_bytes(a)), stream);
}

}  // namespace dmm::cuda
