// Thread-block clusters as the kernels use them. A kernel includes this and nothing of CUDA or torch, so that the
// emulator can compile the same source.
#pragma once

#ifndef DMM_EMULATOR
#include <cooperative_groups.h>
#include <cuda_runtime.h>

// All shared memory of a kernel, as one array whose size the launch decides.
#define DMM_SHARED(type, name) extern __shared__ __align__(16) unsigned char dmm_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(dmm_shared_bytes)
#endif

namespace dmm::cuda {

// Clusters begin with sm_90; what is compiled for less is never launched.
#if defined(DMM_EMULATOR) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define DMM_HAS_CLUSTERS 1
#endif

#ifdef DMM_HAS_CLUSTERS
struct Cluster {
  cooperative_groups::cluster_group group = cooperative_groups::this_cluster();

  __device__ unsigned rank() const { return group.block_rank(); }
  __device__ unsigned blocks() const { return group.num_blocks(); }
  // Where `mine` lies in the shared memory of another block of the cluster.
  template <class S>
  __device__ S* in(unsigned block, S* mine) const {
    return group.map_shared_rank(mine, block);
  }
  // What was written before, here or in other blocks, is seen by all once all have arrived.
  __device__ void arrive() const { group.barrier_arrive(); }
  __device__ void wait() const { group.barrier_wait(); }
  __device__ void sync() const { group.sync(); }
};
#endif

}  // namespace dmm::cuda
