// A block of the cluster that numbers go to, with its place in memory worked out once.
#pragma once

#include "cluster.cuh"

namespace dmm::cuda {

#if defined(DMM_HAS_CLUSTERS) && !defined(DMM_EMULATOR)
class Peer {
 public:
  Peer() = default;
  // `shared` is anything in this block's shared memory.
  __device__ Peer(int block, const void* shared)
      : shift_(shared_address_in(block, shared) - shared_address(shared)) {}

  // As transaction_store.
  __device__ void store(float* mine, const float (&values)[2], uint64_t* barrier) const {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
                     shared_address(mine) + shift_),
                 "r"(__float_as_uint(values[0])), "r"(__float_as_uint(values[1])),
                 "r"(shared_address(barrier) + shift_)
                 : "memory");
  }

 private:
  unsigned shift_;  // from an address in this block to the same in that one
};
#else
class Peer {
 public:
  Peer() = default;
  __device__ Peer(int block, const void*) : block_(block) {}
  template <int kCount>
  __device__ void store(float* mine, const float (&values)[kCount], uint64_t* barrier) const {
    transaction_store(block_, mine, values, barrier);
  }

 private:
  int block_;
};
#endif

}  // namespace dmm::cuda
