#pragma once

#include "cuda/exchange.cuh"
#include "exchange_floor.h"

namespace dmm::cuda {

// One block of a cluster. Shared memory: the barriers of one group, and two rings, of which a step writes one while the
// other is still read.
template <int kCount>
__global__ void exchange_floor_kernel(const __grid_constant__ ExchangeFloor a) {
  DMM_SHARED(float, shared);
  const Cluster cluster{};
  const int ring = a.cluster_size * a.width, first = cluster.rank() * a.width, givers = 32 * a.giving_warps;
  const int bytes = static_cast<int>(sizeof(float)) * ring;
  const int64_t base = static_cast<int64_t>(blockIdx.x / a.cluster_size) * ring + first;
  const int thread = static_cast<int>(threadIdx.x);
  float* const rings = shared + 4;
  Exchange exchange(cluster, cluster.blocks(), reinterpret_cast<uint64_t*>(shared), a.hang);
  exchange.start(1, [&](int, int step) { return step < a.steps ? bytes : 0; });
  for (int t = 0; t <= a.steps; ++t) {
    if (t > 0) exchange.wait(0, t - 1, [] { return 1; });
    if (t > 0 && t + 1 < a.steps && thread == 0) exchange.expect(0, t + 1, bytes);
    const float* const before = rings + ((t + 1) & 1) * ring;
    if (thread < givers) {
      for (int i = kCount * thread; i < a.width; i += kCount * givers) {
        float values[kCount];
        for (int k = 0; k < kCount; ++k) {
          const int next = first + i + k + 1;
          values[k] = t == 0 ? a.in[base + i + k] : before[next < ring ? next : 0];
          if (t == a.steps) a.out[base + i + k] = values[k];
        }
        if (t < a.steps) exchange.give(0, t, rings + (t & 1) * ring + first + i, values);
      }
    }
    __syncthreads();  // as in a scan, whose blocks give when all their threads have read
  }
  exchange.finish(1, [&](int) { return a.steps; });
}

}  // namespace dmm::cuda
