#pragma once

#include "exchange.cuh"
#include "exchange_floor.h"

namespace dmm::cuda {

// One block of a cluster. Shared memory: two rings, of which a step writes one while the other is still read, and the
// barriers of one group.
__global__ void exchange_floor_kernel(ExchangeFloor a) {
  DMM_SHARED(float, shared);
  const Cluster cluster{};
  const Exchange exchange(cluster, cluster.blocks(), reinterpret_cast<uint64_t*>(shared));
  float* const rings = shared + 4;
  const int ring = a.cluster_size * a.width, first = cluster.rank() * a.width, bytes = 4 * ring;
  const int64_t base = static_cast<int64_t>(blockIdx.x / a.cluster_size) * ring + first;
  exchange.start(1);
  if (threadIdx.x == 0)
    for (int t = 0; t < 2 && t < a.steps; ++t) exchange.expect(0, t, bytes);
  for (int t = 0; t <= a.steps; ++t) {
    if (t > 0) exchange.wait(0, t - 1);
    if (t > 0 && t + 1 < a.steps && threadIdx.x == 0) exchange.expect(0, t + 1, bytes);
    const float* const before = rings + ((t + 1) & 1) * ring;
    for (int i = static_cast<int>(threadIdx.x); i < a.width; i += static_cast<int>(blockDim.x)) {
      const int next = first + i + 1;
      const float value = t == 0 ? a.in[base + i] : before[next < ring ? next : 0];
      if (t == a.steps) a.out[base + i] = value;
      else exchange.give(0, t, rings + (t & 1) * ring + first + i, value);
    }
    __syncthreads();  // as in a scan, whose blocks give when all their threads have read
  }
}

}  // namespace dmm::cuda
