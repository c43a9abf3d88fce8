// The exchange of combiner_scan's sums among the blocks of a cluster. Lanes with the same sums divide the destination
// blocks among themselves; each block has an inbox for the sums of every block, and adds them.
//
// The argument of exchange.cuh for two alternating barriers and inboxes:
//  - A block sends for step k + 2 of a group after its warps with latents have waited for k + 1. All sums of k + 1 were
//    sent, by every block, after the block's barriers of that step, which these warps reached after they had waited for k
//    and added its sums. So no warp reads overwritten sums, or waits for a phase that has passed. A single block has a
//    third barrier in place of the wait.
//  - At its first step, which has no wait, a row adds this block's own zeros, in the inbox of the second step.
#pragma once

#include "exchange.cuh"
#include "ragged.cuh"
#include "rows_layout.cuh"

namespace dmm::cuda {

template <int kBlocks, class K, int kSums, class Args>  // K: a RowsKernel; a latent has kSums
class RowsByCluster {
  using From = FromUnits<K>;
  using Layout = RowsLayout<K>;
  using Mine = LatentThread<K>;
  static constexpr int kWidth = kLaneGroups * K::kOutputs, kInboxOfBlock = K::kRows * kWidth;
  static constexpr int kPeers = (kBlocks + From::kCopies - 1) / From::kCopies;

 public:
  using Blocks = Cluster;
  __device__ static Cluster blocks_of(const Args&) { return {}; }
  __device__ static constexpr int count(const Cluster&) { return kBlocks; }
  // The number of elements of all inboxes of `groups` groups.
  __device__ static int inboxes(int groups) { return inbox(groups, 0); }

  __device__ RowsByCluster(const Args& a, const Cluster& cluster, float* shared)
      : a_(a),
        shared_(shared),
        exchange_(cluster, kBlocks, reinterpret_cast<uint64_t*>(shared + Layout::kBarriers), a.hang) {
    // Each lane starts with its own block, so that not all store to the same block first.
#pragma unroll
    for (int i = 0; i < kPeers; ++i) {
      const int peer = (cluster.rank() + From::copy() + i * From::kCopies) % kBlocks;
      const int given = cluster.rank() * kInboxOfBlock + From::row() * kWidth + From::first_kept();
      to_[i] = remote(peer, shared + Layout::kInbox + given);
      barrier_[i] = remote(peer, shared + Layout::kBarriers);
    }
  }

  // Called by all threads before the first step; `finish` is called after the last.
  __device__ void start(const ClusterRows& rows) const {
    exchange_.start(rows.groups(), [&](int group, int step) { return bytes(rows.longest(group), step); });
  }

  // Addresses of a turn, computed before it begins.
  struct Turn {
    int received, given;  // offsets in shared memory of the sums to add, and of those that the block sends to itself
    Remote sums[kPeers], barriers[kPeers];  // destinations and barriers of its sums
  };
  __device__ Turn turn_of(int group, int step) const {
    Turn turn;
    turn.received = Layout::kInbox + inbox(group, step + 1) + Mine::row() * kWidth + kSums * Mine::latent();
    turn.given = Layout::kInbox + inbox(group, step);
#pragma unroll
    for (int i = 0; i < kPeers; ++i) {
      turn.sums[i] = to_[i] + 4 * inbox(group, step);
      turn.barriers[i] = barrier_[i] + 8 * (2 * group + (step & 1));
    }
    return turn;
  }

  // Waits for the sums of the thread's latent from all blocks and adds them. The first step has none.
  __device__ void receive(const Turn& turn, int group, int step, float (&sums)[kSums]) {
    if (kBlocks > 1 && step > 0) exchange_.wait(group, step - 1, [] { return K::kRows; });
    add_up(shared_ + turn.received, sums);
  }
  // `steps` is the number of steps of the group.
  __device__ void give(const Turn& turn, int group, int step, int steps, const float (&sums)[kGivenAtOnce]) const {
    const bool has_sums = From::group() < a_.from_units.groups() && !exchange_.is_lost();
    if constexpr (kBlocks == 1) {
      float* const own = shared_ + turn.given + From::row() * kWidth + From::first_kept();
      if (has_sums && From::copy() == 0) *reinterpret_cast<float2*>(own) = float2{sums[0], sums[1]};
      __syncthreads();
    } else if (has_sums) {
      const bool has_last_peer = From::copy() + (kPeers - 1) * From::kCopies < kBlocks;
#pragma unroll
      for (int i = 0; i < kPeers; ++i)
        if ((i + 1) * From::kCopies <= kBlocks || has_last_peer)
          transaction_store(true, turn.sums[i], sums, turn.barriers[i]);
    }
    if (threadIdx.x == 0 && step > 0 && step + 1 < steps)
      exchange_.expect(group, step + 1, bytes(steps, step + 1));
  }
  __device__ void finish(const ClusterRows& rows) {
    exchange_.finish(rows.groups(), [&](int group) { return rows.longest(group); });
  }

 private:
  // The offset of a group's inbox for a step. A step writes one inbox while the other may still be read.
  __device__ static int inbox(int group, int step) { return (2 * group + (step & 1)) * kBlocks * kInboxOfBlock; }
  // Bytes that a block receives from all blocks, for a group with `steps` steps; 0 past the last.
  __device__ int bytes(int steps, int step) const { return step < steps ? 4 * K::kRows * a_.from_units.groups() * K::kOutputs * kBlocks : 0; }

  __device__ static void add_up(const float* given, float (&sums)[1]) {
    float of_blocks[kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) of_blocks[block] = given[block * kInboxOfBlock];
    sums[0] = sum_of(of_blocks);
  }
  __device__ static void add_up(const float* given, float (&sums)[2]) {
    float first[kBlocks], second[kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const float2 both = *reinterpret_cast<const float2*>(given + block * kInboxOfBlock);
      first[block] = both.x;
      second[block] = both.y;
    }
    sums[0] = sum_of(first);
    sums[1] = sum_of(second);
  }

  const Args& a_;
  float* const shared_;
  Exchange exchange_;
  Remote to_[kPeers], barrier_[kPeers];  // destinations and barriers of its sums, for the first inboxes
};

}  // namespace dmm::cuda
