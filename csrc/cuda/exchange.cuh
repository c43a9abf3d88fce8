// The exchange of numbers among the blocks of a cluster.
//
// A number goes straight to every block's shared memory, and a barrier there counts its bytes (st.async); the block
// that waits knows how many to expect. So a step needs no barrier of the whole cluster, which would wait for all that a
// thread has stored, in device memory too (it compiles to MEMBAR.ALL.GPU), and groups of rows need not wait for
// one another.
//
// Two barriers of a group take turns. That is enough: a block gives for step k + 2 when it has all of step k + 1, and
// the last of that was given by blocks that had waited for step k, and had read it. This requires every receiving block
// to give too: a block that did not would hold up no other, and two phases of its barriers would run into one. So of a
// cluster the first blocks exchange, and the others take no part.
//
// A wait that times out is recorded, and its thread exchanges no more: it gives nothing and waits for nothing, so that a
// fault costs the time of a few waits and not that of a wait a step. The kernel ends, with wrong results.
#pragma once

#include "cluster.cuh"
#include "hang.cuh"

namespace dmm::cuda {

class Exchange {
 public:
  // Of the first `blocks` of a cluster. `barriers` of two for each group; where there is one block, none is used. So many
  // threads of each block arrive at every step, where a block does not give to itself.
  __device__ Exchange(const Cluster& cluster, int blocks, uint64_t* barriers, const HangReport& hang, int arrivals = 0)
      : cluster_(cluster), blocks_(blocks), barriers_(barriers), hang_(hang), arrivals_(arrivals) {}

  // All blocks come here. `bytes_of(group, step)` come for a step from all blocks together; 0 where none is exchanged.
  template <class Bytes>
  __device__ void start(int groups, Bytes bytes_of) const {
    if (blocks_ > 1 && cluster_.rank() < blocks_ && threadIdx.x == 0) {
      for (int i = 0; i < 2 * groups; ++i) transaction_init(barriers_ + i, arrivals_);
      for (int group = 0; group < groups; ++group)
        for (int step = 0; step < 2; ++step)
          if (const int bytes = bytes_of(group, step)) expect(group, step, bytes);
    }
    cluster_.sync();  // no block gives before all are there
  }
  // How many bytes come for a step, from all blocks. One thread says it, once it has waited for the step two before.
  __device__ void expect(int group, int step, int bytes) const {
    if (blocks_ > 1) transaction_expect(barrier(group, step), bytes);
  }
  __device__ void arrive(int group, int step) const {
    if (blocks_ > 1) transaction_arrive(barrier(group, step));
  }
  // Numbers go to where `mine` is, in every block that exchanges.
  template <int kCount>
  __device__ void give(int group, int step, float* mine, const float (&values)[kCount]) const {
    if (blocks_ == 1) {
      for (int i = 0; i < kCount; ++i) mine[i] = values[i];
      return;
    }
    // Each begins with itself, so that no block is the first of all.
    for (int i = 0, block = cluster_.rank(); i < blocks_; ++i, block = block + 1 == blocks_ ? 0 : block + 1)
      transaction_store(block, mine, values, barrier(group, step));
  }
  __device__ void give(int group, int step, float* mine, float value) const {
    const float values[1] = {value};
    give(group, step, mine, values);
  }
  // Waits for what all blocks give for a step. `rows()` take part in it: for the record alone.
  template <class Rows>
  __device__ void wait(int group, int step, Rows rows) {
    if (blocks_ <= 1) {
      if (blocks_ == 1) __syncthreads();
      return;
    }
    const int parity = step >> 1 & 1;
    if (__builtin_expect(transaction_wait(barrier(group, step), parity), true)) return;
    record_hang<kByCluster>(hang_, cluster_, group, step, rows(),
                [&] { return *const_cast<const volatile uint64_t*>(barrier(group, step)); });
    blocks_ = 0;
  }
  // Whether a wait of this thread has timed out: it is to give no more.
  __device__ bool is_lost() const { return blocks_ == 0; }
  // All threads of the block come here, after the last wait of each group. `steps_of(group)` were exchanged, and waited
  // for. Where more bytes came than were expected, phases have ended early and some are left: the next phases, of no
  // bytes, do not end. One thread finds out. Threads that arrive at every step do so in these phases too, before.
  template <class Steps>
  __device__ void finish(int groups, Steps steps_of) {
    __syncthreads();  // a thread that still waits would take the end of the phase after the next for none at all
    if (blocks_ > 1 && threadIdx.x == 0) {
      for (int group = 0; group < groups; ++group) {
        for (int step = steps_of(group), last = step + 1; step <= last; ++step) {
          expect(group, step, 0);
          wait(group, step, [] { return 0; });
        }
      }
    }
    // Other blocks may still give to this one, whose memory has to be there until they have ended or timed out too.
    if (blocks_ == 0) cluster_.sync();
  }

 private:
  __device__ uint64_t* barrier(int group, int step) const { return barriers_ + 2 * group + (step & 1); }

  const Cluster& cluster_;
  int blocks_;  // 0 once a wait of this thread has timed out, so that no separate test is needed
  uint64_t* const barriers_;
  const HangReport& hang_;
  const int arrivals_;
};

}  // namespace dmm::cuda
