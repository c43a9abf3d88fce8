// The rows of a cluster, each with its own length, in groups that advance independently.
#pragma once

#include "cluster.cuh"
#include "ragged.h"

namespace dmm::cuda {

struct Row {
  int particle, sequence;  // its indices in [P, B, ...]
  int index;               // its index among all rows
  int length;
};

// The rows of this block's cluster, or team, in shared memory, longest first.
class ClusterRows {
 public:
  // The storage has space for a.rows_per_cluster rows. All threads must call this.
  template <class Blocks>  // Cluster or Team
  __device__ ClusterRows(const Ragged& a, const Blocks& cluster, Row* rows)
      : rows_(rows), per_group_(a.rows_per_group) {
    const int first = cluster.index() * a.rows_per_cluster;
    count_ = first + a.rows_per_cluster < a.rows() ? a.rows_per_cluster : a.rows() - first;
    const int mine = static_cast<int>(threadIdx.x);
    if (mine < kMostRows) {  // one warp, which reads all lengths at once
      const int index = first + (mine < count_ ? mine : 0);
      // Out-of-range lengths are clamped: results are then unspecified, but no access is out of bounds.
      const int64_t given = a.lengths[index % a.sequences * a.lengths_stride];
      const int length = static_cast<int>(given < 0 ? 0 : given > a.steps ? a.steps : given);
      int longer = 0;
      for (int i = 0; i < count_; ++i) {
        const int other = __shfl_sync(~0u, length, i);
        longer += other > length || (other == length && i < mine);
      }
      if (mine < count_) rows[longer] = {index / a.sequences, index % a.sequences, index, length};
    }
    __syncthreads();
  }

  __device__ int count() const { return count_; }
  __device__ int groups() const { return (count_ + per_group_ - 1) / per_group_; }
  __device__ int first(int group) const { return group * per_group_; }
  __device__ int longest(int group) const { return rows_[first(group)].length; }
  __device__ const Row& operator[](int row) const { return rows_[row]; }
  // The number of rows of a group with more than t steps, which are its first ones.
  __device__ int more_than(int group, int t) const {
    int n = 0;
    for (int row = first(group); row < first(group) + per_group_ && row < count_; ++row) n += rows_[row].length > t;
    return n;
  }

 private:
  const Row* const rows_;
  const int per_group_;
  int count_;
};

}  // namespace dmm::cuda
