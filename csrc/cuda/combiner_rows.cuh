// combiner_scan with all weights in registers, one row at a time: a step takes a few hundred instructions and two
// barriers of the block. Rows of a cluster take turns, so that what one gives is on its way while others compute.
//
// A step: the first warps wait for what the blocks gave and add it up, a thread for each latent; all warps make the
// block's units of the latents, and then what those add to the sums, which two lanes or more of a warp have and deal
// to the blocks.
//
// Threads are not in step, so that a buffer and a barrier of the exchange are safe only because of these:
//  - A block gives for step k + 2 of a row when its first warps have waited for k + 1. All of k + 1 was given, by every
//    block, after the block's barriers of that step, to which its first warps came when they had waited for k and
//    added it up. So nobody reads what is overwritten, nor waits for a phase that is over.
//  - Latents of a step are overwritten after the barrier that follows the units of the one before, to which all
//    came that had read them; units after the barrier that follows the latents.
#pragma once

#include "combiner_rows_directions.cuh"
#include "exchange.cuh"
#include "lane_weights.cuh"

namespace dmm::cuda {

constexpr int kGivenAtOnce = 2;  // numbers that go to another block in one store

template <class Direction, int kBlocks, int kUnits, int kToInputs, int kOutputs, int kFromInputs, class Args>
class CombinerRowsBlock {
  using ToUnits = LaneWeights<kUnits, kToInputs, 1>;
  using FromUnits = LaneWeights<kOutputs, kFromInputs, kGivenAtOnce>;
  static constexpr int kWidth = kLaneGroups * kOutputs;
  static constexpr int kPeers = (kBlocks + FromUnits::kCopies - 1) / FromUnits::kCopies;

 public:
  __device__ CombinerRowsBlock(const Args& a, float* shared)
      : a_(a),
        rank_(cluster_.rank()),
        first_(rank_ * a.to_units.outputs),
        units_(first_ >= a.units ? 0 : a.units - first_ < a.to_units.outputs ? a.units - first_ : a.to_units.outputs),
        rows_(a.ragged, cluster_, reinterpret_cast<Row*>(shared)),
        barriers_(shared + 4 * a.ragged.rows_per_cluster),
        latents_(barriers_ + 4 * a.ragged.rows_per_cluster),
        hidden_(latents_ + kLaneParts * lane_stride(kToInputs)),
        inbox_(hidden_ + kLaneParts * lane_stride(kFromInputs)),
        given_(inbox_ + rank_ * kWidth + FromUnits::first_kept()),
        got_(inbox_ + Direction::kSums * static_cast<int>(threadIdx.x)),
        latent_at_{latents_ + lane_place(kToInputs, static_cast<int>(threadIdx.x)),
                   latents_ + lane_place(kToInputs, a.latents + static_cast<int>(threadIdx.x))} {
    // Each lane begins with its own block, so that none is the first of all.
#pragma unroll
    for (int i = 0; i < kPeers; ++i)
      peers_[i] = Peer((rank_ + FromUnits::copy() + i * FromUnits::kCopies) % kBlocks, shared);
  }

  __device__ void run() {
    ToUnits to;
    to.template bring<Direction::kByInputs>(latents_, [this](int output, int input) {
      return output < units_ && input < a_.to_units.inputs ? Direction::to_unit(a_, first_ + output, input) : nullptr;
    });
    FromUnits from;
    from.template bring<Direction::kByInputs>(latents_, [this](int output, int input) {
      return output < a_.from_units.outputs && input < units_ ? Direction::from_unit(a_, output, first_ + input) : nullptr;
    });
    const int thread = static_cast<int>(threadIdx.x);
    for (float* zero = latents_ + thread; zero < inbox_; zero += kMostThreads) *zero = 0.0f;
    clear_past_ends(a_, rows_, cluster_);
    const bool has_unit = ToUnits::copy() == 0 && ToUnits::first_kept() < units_;
    const int stored = (a_.latents + kBlocks - 1) / kBlocks;
    Direction direction(a_, thread, has_unit ? first_ + ToUnits::first_kept() : a_.units,
                        thread < a_.latents && thread / stored == rank_);
    float* const unit_at = hidden_ + lane_place(kFromInputs, ToUnits::first_kept());
    int active = rows_.count();
    for (; active > 0 && rows_[active - 1].length == 0; --active) direction.skip(rows_[active - 1]);

    Exchange exchange(cluster_, kBlocks, reinterpret_cast<uint64_t*>(barriers_), a_.hang);
    exchange.start(rows_.groups(), [this](int group, int step) { return bytes(rows_[group], step); });
    Row row = rows_[0];
    if (active > 0) direction.fetch(row, 0);
    for (int step = 0, group = 0; active > 0;) {
      begin(exchange, direction, row, group, step);
      __syncthreads();
      const bool is_whole = step < row.length;
      if (is_whole) {
        float sum[1], sums[kGivenAtOnce];
        to.multiply(latents_, sum);
        const float unit = direction.make_unit(sum[0]);
        if (has_unit) *unit_at = unit;
        __syncthreads();
        from.multiply(hidden_, sums);
        give(exchange, group, step, sums);
        if (thread == 0 && step > 0 && step + 1 < row.length) exchange.expect(group, step + 1, bytes(row, step + 1));
        direction.store_unit(row, step);
      }
      direction.store_latent(row, step);
      if (++group == active) {
        while (active > 0 && rows_[active - 1].length == step) --active;
        group = 0;
        ++step;
      }
      if (active > 0) {
        row = rows_[group];
        direction.fetch(row, step);
      }
    }
    exchange.finish(rows_.groups(), [this](int group) { return rows_.longest(group); });
  }

 private:
  // How far a row's inbox for a step is from the first. A step writes one while the other is still read.
  __device__ static int inbox(int group, int step) { return (2 * group + (step & 1)) * kBlocks * kWidth; }
  // Bytes that a block receives from all blocks; 0 past the last step.
  __device__ int bytes(const Row& row, int step) const {
    return step < row.length ? 4 * a_.from_units.groups() * kOutputs * kBlocks : 0;
  }

  // The step's latents, from what the blocks gave in the step before.
  __device__ void begin(Exchange& exchange, Direction& direction, const Row& row, int group, int step) const {
    direction.prepare();
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= (a_.latents + 31) / 32 * 32) return;
    const float* const given = got_ + inbox(group, step + 1);
    float sums[Direction::kSums] = {};
    if (step > 0) {
      exchange.wait(group, step - 1, [] { return 1; });
      if (thread < a_.latents) add_up(given, sums);
    }
    if (thread < a_.latents) direction.begin(row, step, sums, latent_at_);
  }

  __device__ static void add_up(const float* given, float (&sums)[1]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) sums[0] += given[block * kWidth];
  }
  __device__ static void add_up(const float* given, float (&sums)[2]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const float2 both = *reinterpret_cast<const float2*>(given + block * kWidth);
      sums[0] += both.x;
      sums[1] += both.y;
    }
  }

  // Lanes that have the same sums deal them to the blocks.
  __device__ void give(const Exchange& exchange, int group, int step, const float (&sums)[kGivenAtOnce]) const {
    if (FromUnits::group() >= a_.from_units.groups()) return;
    float* const mine = given_ + inbox(group, step);
#pragma unroll
    for (int i = 0; i < kPeers; ++i) {
      const int next = FromUnits::copy() + i * FromUnits::kCopies;
      if (next < kBlocks) exchange.give_to(peers_[i], group, step, mine, sums);
    }
  }

  const Args& a_;
  const Cluster cluster_{};
  const int rank_, first_, units_;
  const Rows rows_;
  float *const barriers_, *const latents_, *const hidden_, *const inbox_;
  float *const given_, *const got_;  // where this thread's numbers go in the first inbox, and what it adds up
  float* const latent_at_[2];        // where what it makes of its latent lies
  Peer peers_[kPeers];
};

template <int kBlocks, int kUnits, int kToInputs, int kOutputs, int kFromInputs>
__global__ __launch_bounds__(kMostThreads, 1) void combiner_rows_fwd_kernel(const __grid_constant__ CombinerRows a) {
#ifdef DMM_HAS_CLUSTERS
  DMM_SHARED(float, shared);
  CombinerRowsBlock<RowsForward, kBlocks, kUnits, kToInputs, kOutputs, kFromInputs, CombinerRows>(a, shared).run();
#endif
}

template <int kBlocks, int kUnits, int kToInputs, int kOutputs, int kFromInputs>
__global__ __launch_bounds__(kMostThreads, 1) void combiner_rows_bwd_kernel(
    const __grid_constant__ CombinerRowsBackward a) {
#ifdef DMM_HAS_CLUSTERS
  DMM_SHARED(float, shared);
  CombinerRowsBlock<RowsBackward, kBlocks, kUnits, kToInputs, kOutputs, kFromInputs, CombinerRowsBackward>(a, shared)
      .run();
#endif
}

}  // namespace dmm::cuda
