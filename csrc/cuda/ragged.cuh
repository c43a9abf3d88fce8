// The rows of a batch that a cluster has, each with a length of its own.
#pragma once

#include "cluster.cuh"
#include "ragged.h"

namespace dmm::cuda {

struct Row {
  int particle, sequence;  // where it lies in [P, B, ...]
  int index;               // among all rows
  int length;
};

// The rows of this block's cluster, longest first, in shared memory: call it once, with room for a.rows of them.
__device__ inline int take_rows(const Ragged& a, Row* rows) {
  const Cluster cluster{};
  const int first = static_cast<int>(blockIdx.x) / cluster.blocks() * a.rows_per_cluster;
  const int count = first + a.rows_per_cluster < a.rows() ? a.rows_per_cluster : a.rows() - first;
  const int mine = static_cast<int>(threadIdx.x);
  const auto length = [&](int i) {
    // Whoever gives a length outside [0, T] gets a wrong result, and touches no memory that is not his.
    const int64_t given = a.lengths[(first + i) % a.sequences * a.lengths_stride];
    return static_cast<int>(given < 0 ? 0 : given > a.steps ? a.steps : given);
  };
  if (mine < count) {
    int longer = 0;
    for (int i = 0; i < count; ++i) longer += length(i) > length(mine) || (length(i) == length(mine) && i < mine);
    const int index = first + mine;
    rows[longer] = {index / a.sequences, index % a.sequences, index, length(mine)};
  }
  __syncthreads();
  return count;
}

// How many of the rows, longest first, have more than t steps; t goes by one step at a time, up or down.
class Active {
 public:
  __device__ Active(const Row* rows, int count) : rows_(rows), count_(count) {}
  __device__ int more_than(int t) {
    while (active_ < count_ && rows_[active_].length > t) ++active_;
    while (active_ > 0 && rows_[active_ - 1].length <= t) --active_;
    return active_;
  }

 private:
  const Row* rows_;
  int count_, active_ = 0;
};

}  // namespace dmm::cuda
