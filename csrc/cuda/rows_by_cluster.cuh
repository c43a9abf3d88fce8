// The exchange of combiner_scan's sums among the blocks of a cluster. Lanes that have the same sums deal them to the
// blocks, each of which has an inbox for those of every block, and adds up what came.
//
// The argument of exchange.cuh for two barriers, and two inboxes, that take turns:
//  - A block gives for step k + 2 of a group when its warps that have latents have waited for k + 1. All of k + 1 was
//    given, by every block, after the block's barriers of that step, to which these warps came when they had waited for
//    k and added it up. So no warp reads what is overwritten, or waits for a phase that is over. A block alone has a
//    third barrier in place of the wait.
//  - What a row is added up from at its first step, where no wait is, is this block's own zeros, which lie where the
//    second step's sums come.
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
  // Numbers of all inboxes of so many groups.
  __device__ static int inboxes(int groups) { return inbox(groups, 0); }

  __device__ RowsByCluster(const Args& a, const Cluster& cluster, float* shared)
      : a_(a),
        shared_(shared),
        exchange_(cluster, kBlocks, reinterpret_cast<uint64_t*>(shared + Layout::kBarriers), a.hang) {
    // Each lane begins with its own block, so that none is the first of all.
#pragma unroll
    for (int i = 0; i < kPeers; ++i) {
      const int peer = (cluster.rank() + From::copy() + i * From::kCopies) % kBlocks;
      const int given = cluster.rank() * kInboxOfBlock + From::row() * kWidth + From::first_kept();
      to_[i] = remote(peer, shared + Layout::kInbox + given);
      barrier_[i] = remote(peer, shared + Layout::kBarriers);
    }
  }

  // All threads come here before the first step, and to `finish` after the last.
  __device__ void start(const ClusterRows& rows) const {
    exchange_.start(rows.groups(), [&](int group, int step) { return bytes(rows.longest(group), step); });
  }

  // Places of a turn, known before it begins.
  struct Turn {
    int received, given;  // of what this thread adds up and of what the block gives itself, in shared memory
    Remote sums[kPeers], barriers[kPeers];  // where its sums go, and are counted
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

  // The sums of the thread's latent, when all blocks have given them. The first step has none.
  __device__ void receive(const Turn& turn, int group, int step, float (&sums)[kSums]) {
    if (kBlocks > 1 && step > 0) exchange_.wait(group, step - 1, [] { return K::kRows; });
    add_up(shared_ + turn.received, sums);
  }
  // The group takes so many steps.
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
  // How far a group's inbox for a step is from the first. A step writes one while the other is still read.
  __device__ static int inbox(int group, int step) { return (2 * group + (step & 1)) * kBlocks * kInboxOfBlock; }
  // Bytes that a block receives from all blocks, of a group of so many steps; 0 past the last.
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
  Remote to_[kPeers], barrier_[kPeers];  // where its sums go, and are counted, for the first inboxes
};

}  // namespace dmm::cuda
