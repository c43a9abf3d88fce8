// The exchange of data among the blocks of a cluster.
//
// Values are stored directly to every block's shared memory, and a barrier there counts their bytes (st.async); the
// waiting block knows how many bytes to expect. So a step needs no cluster-wide barrier, which would also wait for all
// stores of the threads to device memory (it compiles to MEMBAR.ALL.GPU), and groups of rows need not wait for each other.
//
// Each group has two alternating barriers. That is enough: a block sends for step k + 2 when it has received all of step
// k + 1, and the last of that was sent by blocks that had waited for step k and read it. This requires every receiving
// block to send too: the others would not wait for a block that does not send, and two phases of its barriers could
// merge. So only the first blocks of a cluster exchange, and the others do not take part.
//
// A wait that times out is recorded, and its thread stops exchanging: it neither sends nor waits any more, so that a fault
// costs the time of a few waits and not one wait per step. The kernel then ends with wrong results.
#pragma once

#include "cluster.cuh"
#include "hang.cuh"

namespace dmm::cuda {

class Exchange {
 public:
  // An exchange among the first `blocks` of a cluster. `barriers` has two for each group; they are unused if there is only
  // one block. If a block does not send to itself, `arrivals` of its threads arrive at every step instead.
  __device__ Exchange(const Cluster& cluster, int blocks, uint64_t* barriers, const HangReport& hang, int arrivals = 0)
      : cluster_(cluster), blocks_(blocks), barriers_(barriers), hang_(hang), arrivals_(arrivals) {}

  // Called by all blocks. `bytes_of(group, step)` is the number of bytes received from all blocks in a step; 0 if there is
  // no exchange.
  template <class Bytes>
  __device__ void start(int groups, Bytes bytes_of) const {
    if (blocks_ > 1 && cluster_.rank() < blocks_ && threadIdx.x == 0) {
      for (int i = 0; i < 2 * groups; ++i) transaction_init(barriers_ + i, arrivals_);
      for (int group = 0; group < groups; ++group)
        for (int step = 0; step < 2; ++step)
          if (const int bytes = bytes_of(group, step)) expect(group, step, bytes);
    }
    cluster_.sync();  // no block sends before all have started
  }
  // Sets the number of bytes expected from all blocks in a step. Called by one thread after its wait for step - 2.
  __device__ void expect(int group, int step, int bytes) const {
    if (blocks_ > 1) transaction_expect(barrier(group, step), bytes);
  }
  __device__ void arrive(int group, int step) const {
    if (blocks_ > 1) transaction_arrive(barrier(group, step));
  }
  // Stores values to the location of `mine` in every block that takes part.
  template <int kCount>
  __device__ void give(int group, int step, float* mine, const float (&values)[kCount]) const {
    if (blocks_ == 1) {
      for (int i = 0; i < kCount; ++i) mine[i] = values[i];
      return;
    }
    // Each block starts with itself, so that not all store to the same block first.
    for (int i = 0, block = cluster_.rank(); i < blocks_; ++i, block = block + 1 == blocks_ ? 0 : block + 1)
      transaction_store(block, mine, values, barrier(group, step));
  }
  __device__ void give(int group, int step, float* mine, float value) const {
    const float values[1] = {value};
    give(group, step, mine, values);
  }
  // Waits for the data of all blocks for a step. `rows()`, the number of active rows, is used only in the record.
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
  // True if a wait of this thread has timed out, after which it must not send.
  __device__ bool is_lost() const { return blocks_ == 0; }
  // Called by all threads of the block after the last wait of each group. `steps_of(group)` steps were exchanged and waited
  // for. If more bytes arrived than expected, phases have ended early and bytes are left over, so that the next phases, of
  // zero bytes, do not end. One thread checks this. Threads that arrive at every step also arrive in these phases, before.
  template <class Steps>
  __device__ void finish(int groups, Steps steps_of) {
    __syncthreads();  // a thread that still waits could miss the end of its phase, as the parity repeats after two phases
    if (blocks_ > 1 && threadIdx.x == 0) {
      for (int group = 0; group < groups; ++group) {
        for (int step = steps_of(group), last = step + 1; step <= last; ++step) {
          expect(group, step, 0);
          wait(group, step, [] { return 0; });
        }
      }
    }
    // Other blocks may still store to this block's memory, which must exist until they have ended or timed out too.
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
