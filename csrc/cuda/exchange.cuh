// What the blocks of a cluster give to each other.
//
// A number goes straight to every block's shared memory, and a barrier there counts its bytes (st.async); whoever
// waits knows how many to expect. So a step needs no barrier of the whole cluster, which would wait for all that a
// thread has stored, in device memory too (it compiles to MEMBAR.ALL.GPU), and groups of rows need not wait for
// one another.
//
// Two barriers of a group take turns. That is enough: a block gives for step k + 2 when it has all of step k + 1, and
// the last of that was given by blocks that had waited for step k, and had read it. It takes that whoever receives
// gives too: a block that did not would hold up nobody, and two phases of its barriers would run into one. So of a
// cluster the first blocks exchange, and the others have to keep out.
#pragma once

#include "cluster.cuh"

namespace dmm::cuda {

class Exchange {
 public:
  // Of the first `blocks` of a cluster. `barriers` of two for each group; where there is one block, none is used.
  __device__ Exchange(const Cluster& cluster, int blocks, uint64_t* barriers)
      : cluster_(cluster), blocks_(blocks), barriers_(barriers) {}

  __device__ void start(int groups) const {
    if (blocks_ > 1 && threadIdx.x == 0)
      for (int i = 0; i < 2 * groups; ++i) transaction_init(barriers_ + i);
    cluster_.sync();  // nobody gives before all are there; all blocks come here
  }
  // How many bytes come for a step, from all blocks. One thread says it, once it has waited for the step two before.
  __device__ void expect(int group, int step, int bytes) const {
    if (blocks_ > 1) transaction_expect(barrier(group, step), bytes);
  }
  // `value` goes to where `mine` is, in every block that exchanges.
  __device__ void give(int group, int step, float* mine, float value) const {
    if (blocks_ == 1) {
      *mine = value;
      return;
    }
    // Each begins with itself, so that no block is everybody's first.
    for (int i = 0, block = cluster_.rank(); i < blocks_; ++i, block = block + 1 == blocks_ ? 0 : block + 1)
      transaction_store(block, mine, value, barrier(group, step));
  }
  __device__ void wait(int group, int step) const {
    if (blocks_ == 1) __syncthreads();
    else transaction_wait(barrier(group, step), step >> 1 & 1);
  }

 private:
  __device__ uint64_t* barrier(int group, int step) const { return barriers_ + 2 * group + (step & 1); }

  const Cluster& cluster_;
  const int blocks_;
  uint64_t* const barriers_;
};

}  // namespace dmm::cuda
