// Thread-block clusters and asynchronous copies as the kernels use them. A kernel includes this and nothing of CUDA
// or torch, so that the emulator can compile the same source.
#pragma once

#ifndef DMM_EMULATOR
#include <cooperative_groups.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

// All shared memory of a kernel, as one array whose size the launch decides.
#define DMM_SHARED(type, name) extern __shared__ __align__(16) unsigned char dmm_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(dmm_shared_bytes)
#endif

namespace dmm::cuda {

#if defined(DMM_EMULATOR) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
struct Cluster {
  cooperative_groups::cluster_group group = cooperative_groups::this_cluster();

  __device__ int rank() const { return static_cast<int>(group.block_rank()); }
  __device__ int blocks() const { return static_cast<int>(group.num_blocks()); }
  // Where `mine` lies in the shared memory of another block of the cluster.
  template <class S>
  __device__ S* in(int block, S* mine) const {
    return group.map_shared_rank(mine, static_cast<unsigned>(block));
  }
  // What was written before, here or in other blocks, is seen by all once all have arrived.
  __device__ void arrive() const { group.barrier_arrive(); }
  __device__ void wait() const { group.barrier_wait(); }
  __device__ void sync() const { arrive(), wait(); }
  // Every block but this one; each begins with another, so that no block is all the others' first.
  template <class Visit>
  __device__ void for_others(Visit visit) const {
    for (int i = 1, block = rank(); i < blocks(); ++i) {
      if (++block == blocks()) block = 0;
      visit(block);
    }
  }
};
#else
// Before sm_90 a block is alone: it can be launched as a cluster of one and no other.
struct Cluster {
  __device__ int rank() const { return 0; }
  __device__ int blocks() const { return 1; }
  template <class S>
  __device__ S* in(int, S* mine) const {
    return mine;
  }
  __device__ void arrive() const {}
  __device__ void wait() const { __syncthreads(); }
  __device__ void sync() const { wait(); }
  template <class Visit>
  __device__ void for_others(Visit) const {}
};
#endif

// A number on its way from device memory to shared memory; nobody else may touch it before it is there, which the
// thread that asked for it knows after `copies_done`.
__device__ inline void copy_async(float* shared, const float* from) { __pipeline_memcpy_async(shared, from, 4); }
// Ends a group of copies.
__device__ inline void copies_end() { __pipeline_commit(); }
// Waits for all groups of this thread but the latest kLater.
template <int kLater>
__device__ inline void copies_done() {
  __pipeline_wait_prior(kLater);
}

}  // namespace dmm::cuda
