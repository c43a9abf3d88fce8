// The rows of a batch that a cluster has, each with a length of its own, in groups that go their own ways.
#pragma once

#include "cluster.cuh"
#include "ragged.h"

namespace dmm::cuda {

struct Row {
  int particle, sequence;  // where it lies in [P, B, ...]
  int index;               // among all rows
  int length;
};

// The rows of this block's cluster, or team, in shared memory, longest first.
class ClusterRows {
 public:
  // With room for a.rows_per_cluster of them. All threads have to be here.
  template <class Blocks>  // Cluster or Team
  __device__ ClusterRows(const Ragged& a, const Blocks& cluster, Row* rows)
      : rows_(rows), per_group_(a.rows_per_group) {
    const int first = cluster.index() * a.rows_per_cluster;
    count_ = first + a.rows_per_cluster < a.rows() ? a.rows_per_cluster : a.rows() - first;
    const int mine = static_cast<int>(threadIdx.x);
    if (mine < kMostRows) {  // a warp, which reads all lengths at once
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
  // How many rows of a group have more than t steps: its first ones.
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
