#pragma once

#include "cluster.cuh"
#include "exchange_floor.h"

namespace dmm::cuda {

// One block of a cluster. Shared memory: two rings, so that a step writes one while the other is still read, and one
// barrier a step is enough: whoever writes a ring again has passed the barrier after all had read it.
__global__ void exchange_floor_kernel(ExchangeFloor a) {
  DMM_SHARED(float, rings);
  const Cluster cluster{};
  const int ring = a.cluster_size * a.width, first = cluster.rank() * a.width;
  const int64_t base = static_cast<int64_t>(blockIdx.x / a.cluster_size) * ring + first;
  cluster.sync();  // no block may be written to before it runs
  for (int64_t t = 0; t <= a.steps; ++t) {
    float* const now = rings + (t & 1) * ring;
    const float* const before = rings + ((t + 1) & 1) * ring;
    for (int i = static_cast<int>(threadIdx.x); i < a.width; i += static_cast<int>(blockDim.x)) {
      const int next = first + i + 1;
      const float value = t == 0 ? a.in[base + i] : before[next < ring ? next : 0];
      if (t == a.steps) a.out[base + i] = value;
      for (int block = 0; block < a.cluster_size; ++block) cluster.in(block, now)[first + i] = value;
    }
    cluster.arrive();
    cluster.wait();
  }
}

}  // namespace dmm::cuda
