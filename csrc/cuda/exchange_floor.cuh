#pragma once

#include "exchange.cuh"
#include "exchange_floor.h"

namespace dmm::cuda {

// As Exchange, of one group and all blocks of a cluster, with plain stores: a warp stores and then arrives at the
// barriers of all blocks. A barrier counts warps and no bytes, so that nothing has to be expected, and what a warp
// gives twice is not seen.
class PlainExchange {
 public:
  __device__ PlainExchange(const Cluster& cluster, int giving_warps, uint64_t* barriers, const HangReport& hang)
      : cluster_(cluster), blocks_(cluster.blocks()), warps_(giving_warps), barriers_(barriers), hang_(hang) {}

  __device__ void start() const {
    if (blocks_ > 1 && threadIdx.x == 0)
      for (int i = 0; i < 2; ++i) transaction_init(barriers_ + i, blocks_ * warps_);
    cluster_.sync();
  }
  __device__ void expect(int) const {}
  __device__ void give(int, float* mine, const float (&values)[4]) const {
    if (blocks_ == 1) {
      for (int i = 0; i < 4; ++i) mine[i] = values[i];
      return;
    }
    for (int i = 0, block = cluster_.rank(); i < blocks_; ++i, block = block + 1 == blocks_ ? 0 : block + 1)
      remote_store(block, mine, values);
  }
  // All lanes of a warp that gives come here when they have given.
  __device__ void given(int step) const {
    __syncwarp();  // the arrival of a lane is after the stores of all
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (blocks_ > 1 && lane < blocks_) remote_arrive(lane, barriers_ + (step & 1));
  }
  __device__ void wait(int step) {
    if (blocks_ <= 1) {
      if (blocks_ == 1) __syncthreads();
      return;
    }
    uint64_t* const barrier = barriers_ + (step & 1);
    const int parity = step >> 1 & 1;
    if (arrivals_wait(barrier, parity)) return;
    record_hang(hang_, cluster_, 0, step, parity, 1, barrier);
    blocks_ = 0;
  }
  __device__ void finish() const {
    if (blocks_ == 0) cluster_.sync();  // as in Exchange
  }

 private:
  const Cluster& cluster_;
  int blocks_;  // 0 once a wait of this thread has given up
  const int warps_;
  uint64_t* const barriers_;
  const HangReport& hang_;
};

// Exchange, likewise of one group and all blocks, of `bytes` a step.
class CountedExchange {
 public:
  __device__ CountedExchange(const Cluster& cluster, const ExchangeFloor& a, uint64_t* barriers)
      : exchange_(cluster, cluster.blocks(), barriers, a.hang), steps_(a.steps), bytes_(4 * a.cluster_size * a.width) {}

  __device__ void start() const {
    exchange_.start(1, [this](int, int step) { return step < steps_ ? bytes_ : 0; });
  }
  __device__ void expect(int step) const { exchange_.expect(0, step, bytes_); }
  template <int kCount>
  __device__ void give(int step, float* mine, const float (&values)[kCount]) const {
    exchange_.give(0, step, mine, values);
  }
  __device__ void given(int) const {}
  __device__ void wait(int step) {
    exchange_.wait(0, step, [] { return 1; });
  }
  __device__ void finish() {
    exchange_.finish(1, [this](int) { return steps_; });
  }

 private:
  Exchange exchange_;
  const int steps_, bytes_;
};

// What a block of the floor does with its exchange. `rings` are two, of which a step writes one while the other is
// still read.
template <int kCount, class Exchanged>
__device__ void pass_ring_along(const ExchangeFloor& a, const Cluster& cluster, float* rings, Exchanged exchange) {
  const int ring = a.cluster_size * a.width, first = cluster.rank() * a.width, givers = 32 * a.giving_warps;
  const int64_t base = static_cast<int64_t>(blockIdx.x / a.cluster_size) * ring + first;
  const int thread = static_cast<int>(threadIdx.x);
  exchange.start();
  for (int t = 0; t <= a.steps; ++t) {
    if (t > 0) exchange.wait(t - 1);
    if (t > 0 && t + 1 < a.steps && thread == 0) exchange.expect(t + 1);
    const float* const before = rings + ((t + 1) & 1) * ring;
    if (thread < givers) {
      for (int i = kCount * thread; i < a.width; i += kCount * givers) {
        float values[kCount];
        for (int k = 0; k < kCount; ++k) {
          const int next = first + i + k + 1;
          values[k] = t == 0 ? a.in[base + i + k] : before[next < ring ? next : 0];
          if (t == a.steps) a.out[base + i + k] = values[k];
        }
        if (t < a.steps) exchange.give(t, rings + (t & 1) * ring + first + i, values);
      }
      if (t < a.steps) exchange.given(t);
    }
    __syncthreads();  // as in a scan, whose blocks give when all their threads have read
  }
  exchange.finish();
}

// One block of a cluster. Shared memory: the barriers of one group, and the rings.
template <int kCount, bool kAsync>
__global__ void exchange_floor_kernel(const __grid_constant__ ExchangeFloor a) {
  DMM_SHARED(float, shared);
  const Cluster cluster{};
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared);
  if constexpr (kAsync) pass_ring_along<kCount>(a, cluster, shared + 4, CountedExchange(cluster, a, barriers));
  else pass_ring_along<kCount>(a, cluster, shared + 4, PlainExchange(cluster, a.giving_warps, barriers, a.hang));
}

}  // namespace dmm::cuda
