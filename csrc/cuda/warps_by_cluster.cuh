// The exchange of rnn_scan's state among the blocks of a cluster, with outputs by warps.
//
// When all warps have written their outputs to the block's own state, each sends the outputs of the whole block to one or two
// other blocks, in stores of 16 bytes per lane. A store whose lanes go to several blocks takes several times as long, which
// is why the warps synchronise first.
//
// The argument of exchange.cuh for two alternating barriers and states: every block sends all rows of a group at every step
// but the last, including rows that have not begun or have ended, and outputs that are not units. So a phase ends when all
// blocks have sent, each after all its warps had read the state before: that state may then be overwritten, and the next
// expected bytes be set on the barrier of the step before.
#pragma once

#include "exchange.cuh"
#include "ragged.cuh"
#include "warp_tile.h"

namespace dmm::cuda {

template <class K, class Args>
class WarpsByCluster {
  static constexpr int kRows = K::kRows;
  static constexpr int kUnits = K::tile().units(), kOwn = K::tile().block_outputs();
  // The stores of a block: a lane stores four numbers, and a warp serves every kWarpsOfBlock-th of the other blocks.
  static constexpr int kQuads = kOwn / 4, kGifts = (kRows * kQuads + 31) / 32;
  static constexpr int kPeers = (15 + kWarpsOfBlock - 1) / kWarpsOfBlock;

 public:
  using Blocks = Cluster;
  __device__ static Cluster blocks_of(const Args&) { return {}; }

  __device__ WarpsByCluster(const Args& a, const Cluster& cluster, const ClusterRows& rows, const WarpLayout& layout,
                            unsigned char* shared)
      : cluster_(cluster),
        rows_(rows),
        layout_(layout),
        shared_(shared),
        exchange_(cluster, cluster.blocks(), reinterpret_cast<uint64_t*>(shared + layout.barriers), a.hang) {}

  // `steps_of(group)` is the number of steps with an exchange. Called by all threads before the first step; `finish` is
  // called after the last.
  template <class Steps>
  __device__ void start(Steps steps_of) {
    exchange_.start(rows_.groups(), [&](int group, int step) { return step < steps_of(group) ? bytes(group) : 0; });
  }
  __device__ void find_peers() {
#pragma unroll
    for (int i = 0; i < kPeers; ++i) peers_[i] = remote(peer(i), shared_);
  }
  // Waits until the block has the state of all blocks after a step of a group. `rows()` is the number of active rows.
  template <class Rows>
  __device__ void wait(int group, int step, Rows rows) {
    exchange_.wait(group, step, rows);
  }
  // docs-begin: all-gather
  // Sends the values that the warp's lanes have written to the block's own `state`.
  template <class Turn>
  __device__ void give(const Turn& turn, const float* state, float) const {
    __syncthreads();
    const int numbers = rows_of(turn.group) * kQuads;
    const int state_at = static_cast<int>(reinterpret_cast<const unsigned char*>(state) - shared_);
    const int barrier = layout_.barriers + 8 * (2 * turn.group + (turn.step & 1));
#pragma unroll
    for (int i = 0; i < kGifts; ++i) {
      const int mine = lane() + 32 * i, place = mine / kQuads * kUnits + cluster_.rank() * kOwn + 4 * (mine % kQuads);
      if (mine >= numbers || exchange_.is_lost()) continue;
      const float4 x = *reinterpret_cast<const float4*>(state + place);
      const float values[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int p = 0; p < kPeers; ++p)
        transaction_store(warp() + 1 + p * kWarpsOfBlock < cluster_.blocks(), peers_[p] + (state_at + 4 * place), values,
                          peers_[p] + barrier);
    }
    if (threadIdx.x == 0 && turn.step > 0 && turn.step + 2 < turn.steps)
      exchange_.expect(turn.group, turn.step + 1, bytes(turn.group));
  }
  // docs-end: all-gather
  template <class Steps>
  __device__ void finish(Steps steps_of) {
    exchange_.finish(rows_.groups(), steps_of);
  }

 private:
  // Each block starts with a different one, so that not all store to the same block first.
  __device__ int peer(int i) const { return (cluster_.rank() + warp() + 1 + i * kWarpsOfBlock) % cluster_.blocks(); }
  __device__ int rows_of(int group) const {
    const int left = rows_.count() - group * kRows;
    return left < kRows ? left : kRows;
  }
  __device__ int bytes(int group) const { return 4 * rows_of(group) * kOwn * (cluster_.blocks() - 1); }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }

  const Cluster& cluster_;
  const ClusterRows& rows_;
  const WarpLayout& layout_;
  unsigned char* const shared_;
  Exchange exchange_;
  Remote peers_[kPeers];
};

}  // namespace dmm::cuda
