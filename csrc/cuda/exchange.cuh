// What the blocks of a cluster give to each other.
//
// A number goes straight to every block's shared memory, and a barrier there counts its bytes (st.async); whoever
// waits knows how many to expect. So a step needs no barrier of the whole cluster, which would wait for all that a
// thread has stored, in device memory too (it compiles to MEMBAR.ALL.GPU), and groups of rows need not wait for
// one another.
//
// Two barriers of a group take turns. That is enough: a block gives for step k + 2 when it has all of step k + 1, and
// the last of that was given by blocks that had waited for step k, and had read it.
#pragma once

#include "cluster.cuh"

namespace dmm::cuda {

class Exchange {
 public:
  // `barriers` of two for each group; in a cluster of one, none is used.
  __device__ Exchange(const Cluster& cluster, uint64_t* barriers) : cluster_(cluster), barriers_(barriers) {}

  __device__ void start(int groups) const {
    if (cluster_.blocks() > 1 && threadIdx.x == 0)
      for (int i = 0; i < 2 * groups; ++i) transaction_init(barriers_ + i);
    cluster_.sync();  // nobody gives before all are there
  }
  // How many bytes come for a step, from all blocks. One thread says it, once it has waited for the step two before.
  __device__ void expect(int group, int step, int bytes) const {
    if (cluster_.blocks() > 1) transaction_expect(barrier(group, step), bytes);
  }
  // `value` goes to where `mine` is, in every block.
  __device__ void give(int group, int step, float* mine, float value) const {
    const int blocks = cluster_.blocks();
    if (blocks == 1) {
      *mine = value;
      return;
    }
    // Each begins with itself, so that no block is everybody's first.
    for (int i = 0, block = cluster_.rank(); i < blocks; ++i, block = block + 1 == blocks ? 0 : block + 1)
      transaction_store(block, mine, value, barrier(group, step));
  }
  __device__ void wait(int group, int step) const {
    if (cluster_.blocks() == 1) __syncthreads();
    else transaction_wait(barrier(group, step), step >> 1 & 1);
  }

 private:
  __device__ uint64_t* barrier(int group, int step) const { return barriers_ + 2 * group + (step & 1); }

  const Cluster& cluster_;
  uint64_t* const barriers_;
};

}  // namespace dmm::cuda
