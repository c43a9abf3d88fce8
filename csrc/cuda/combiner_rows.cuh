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
//  - What a row is added up from at its first step, where no wait is, is this block's own zeros, which lie where the
//    second step's sums come.
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
  static constexpr int kOperands = Direction::kOperands;
  static constexpr int kWidth = kLaneGroups * kOutputs;
  static constexpr int kPeers = (kBlocks + FromUnits::kCopies - 1) / FromUnits::kCopies;
  // Places in shared memory, in numbers.
  static constexpr int kHidden = kLaneParts * lane_stride(kToInputs);
  static constexpr int kSpare = kHidden + kLaneParts * lane_stride(kFromInputs);
  static constexpr int kBarriers = kSpare + kSpareNumbers, kRows = kBarriers + kRowBytes / 4 * kMostRows;
  static constexpr int kInbox = kRows + kRowBytes / 4 * kMostRows;

 public:
  __device__ CombinerRowsBlock(const Args& a, float* shared)
      : a_(a),
        shared_(shared),
        rank_(cluster_.rank()),
        first_(rank_ * a.to_units.outputs),
        units_(first_ >= a.units ? 0 : a.units - first_ < a.to_units.outputs ? a.units - first_ : a.to_units.outputs),
        rows_(a.ragged, cluster_, reinterpret_cast<Row*>(shared + kRows)),
        operands_(shared + kInbox + inbox(a.ragged.rows_per_cluster, 0) + thread()),
        sources_(reinterpret_cast<const float**>(shared + kInbox + inbox(a.ragged.rows_per_cluster, 0) +
                                                 2 * kOperands * kMostThreads * a.ragged.rows_per_cluster) +
                 thread()),
        latent_at_{shared + (has_latent() ? lane_place(kToInputs, Direction::input(thread(), 0)) : kSpare),
                   shared + (has_latent() ? lane_place(kToInputs, Direction::input(thread(), 1)) : kSpare)} {
    // Each lane begins with its own block, so that none is the first of all.
#pragma unroll
    for (int i = 0; i < kPeers; ++i) {
      const int peer = (rank_ + FromUnits::copy() + i * FromUnits::kCopies) % kBlocks;
      to_[i] = remote(peer, shared + kInbox + rank_ * kWidth + FromUnits::first_kept());
      barrier_[i] = remote(peer, shared + kBarriers);
    }
  }

  __device__ void run() {
    ToUnits to;
    to.bring(units_, a_.to_units.inputs,
             [this](int output, int part) { return Direction::to_unit(a_, first_ + output, part); });
    FromUnits from;
    from.bring(a_.from_units.outputs, units_,
               [this](int output, int part) { return Direction::from_unit(a_, output, first_ + part); });
    // The first inboxes too, which are added up before anything has come.
    for (int i = thread(); i < kBarriers; i += kMostThreads) shared_[i] = 0.0f;
    for (int i = thread(); i < inbox(rows_.count(), 0); i += kMostThreads) shared_[kInbox + i] = 0.0f;
    clear_past_ends(a_, rows_, cluster_);
    const int first_unit = ToUnits::first_kept(), stored = (a_.latents + kBlocks - 1) / kBlocks;
    const bool has_unit = ToUnits::copy() == 0 && first_unit < units_;
    Direction direction(a_, thread(), has_unit ? first_ + first_unit : a_.units,
                        has_latent() && thread() / stored == rank_);
    float* const unit_at = shared_ + (has_unit ? kHidden + lane_place(kFromInputs, first_unit) : kSpare);
    const bool has_latents = thread() < (a_.latents + 31) / 32 * 32;  // its warp does
    const bool has_last_peer = FromUnits::copy() + (kPeers - 1) * FromUnits::kCopies < kBlocks;
    int active = rows_.count();
    for (; active > 0 && rows_[active - 1].length == 0; --active) direction.skip(rows_[active - 1]);

    Exchange exchange(cluster_, kBlocks, reinterpret_cast<uint64_t*>(shared_ + kBarriers), a_.hang);
    exchange.start(rows_.groups(), [this](int group, int step) { return bytes(rows_[group], step); });
    for (int step = 0; step < 2; ++step) {
      for (int group = 0; group < active; ++group) {
        if (step == 0) begin_row(direction, rows_[group], group);
        fetch(direction, rows_[group], group, step);
      }
      copies_end();
    }
    Row row = rows_[0];
    Turn turn = turn_of(0, 0);
    for (int step = 0, group = 0; active > 0;) {
      copies_done<1>();  // all but what the turn before asked for
      direction.prepare(row, step, operands(group, step));
      if (has_latents) {
        if (step > 0) exchange.wait(group, step - 1, [] { return 1; });
        float sums[Direction::kSums];
        add_up(shared_ + turn.received, sums);
        direction.begin(sums, latent_at_);
      }
      __syncthreads();
      if (step < row.length) {
        float sum[1], sums[kGivenAtOnce];
        to.multiply(shared_, sum);
        *unit_at = direction.make_unit(sum[0]);
        __syncthreads();
        from.multiply(shared_ + kHidden, sums);
        // Lanes that have the same sums deal them to the blocks.
        if (FromUnits::group() < a_.from_units.groups() && !exchange.is_lost()) {
#pragma unroll
          for (int i = 0; i < kPeers; ++i)
            if ((i + 1) * FromUnits::kCopies <= kBlocks || has_last_peer)
              transaction_store(true, turn.sums[i], sums, turn.barriers[i]);
        }
        if (thread() == 0 && step > 0 && step + 1 < row.length) exchange.expect(group, step + 1, bytes(row, step + 1));
        direction.store_unit(row, step);
        fetch(direction, row, group, step + 2);
      }
      copies_end();
      direction.store_latent(row, step);
      if (++group == active) {
        while (active > 0 && rows_[active - 1].length == step) --active;
        group = 0;
        ++step;
      }
      if (active > 0) row = rows_[group];
      turn = turn_of(group, step);
    }
    exchange.finish(rows_.groups(), [this](int group) { return rows_.longest(group); });
  }

 private:
  // Places of a turn, known before it begins.
  struct Turn {
    int received;  // of what this thread adds up, in shared memory
    Remote sums[kPeers], barriers[kPeers];  // where its sums go, and are counted
  };
  __device__ Turn turn_of(int group, int step) const {
    Turn turn;
    turn.received = kInbox + inbox(group, step + 1) + Direction::kSums * thread();
#pragma unroll
    for (int i = 0; i < kPeers; ++i) {
      turn.sums[i] = to_[i] + 4 * inbox(group, step);
      turn.barriers[i] = barrier_[i] + 8 * (2 * group + (step & 1));
    }
    return turn;
  }

  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ bool has_latent() const { return thread() < a_.latents; }
  // How far a row's inbox for a step is from the first. A step writes one while the other is still read.
  __device__ static int inbox(int group, int step) { return (2 * group + (step & 1)) * kBlocks * kWidth; }
  // Bytes that a block receives from all blocks; 0 past the last step.
  __device__ int bytes(const Row& row, int step) const {
    return step < row.length ? 4 * a_.from_units.groups() * kOutputs * kBlocks : 0;
  }

  // This thread's operands of a row for a step, to which come those of the step after the next.
  __device__ Operands operands(int group, int step) const {
    return {operands_ + (2 * group + (step & 1)) * kOperands * kMostThreads};
  }
  __device__ const float** source(int group, int i) const { return sources_ + (group * kOperands + i) * kMostThreads; }
  __device__ void begin_row(const Direction& direction, const Row& row, int group) const {
#pragma unroll
    for (int i = 0; i < kOperands; ++i)
      *source(group, i) = direction.operand(row, i);
    direction.begin_row(row, operands(group, 0));
  }
  __device__ void fetch(const Direction& direction, const Row& row, int group, int step) const {
    const int t = Direction::time(row, step);
    if (t < 0 || t >= row.length) return;
    const Operands to = operands(group, step);
    const float* from[kOperands];  // all of them before the first copy, so that they are worked out side by side
#pragma unroll
    for (int i = 0; i < kOperands; ++i) from[i] = *source(group, i) + t * direction.operand_stride(i);
    if (has_latent()) {
#pragma unroll
      for (int i = 0; i < Direction::kLatentOperands; ++i) copy_async(&to[i], from[i]);
    }
    if (direction.unit < a_.units) {
#pragma unroll
      for (int i = Direction::kLatentOperands; i < kOperands; ++i) copy_async(&to[i], from[i]);
    }
  }

  __device__ static void add_up(const float* given, float (&sums)[1]) {
    float of_blocks[kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) of_blocks[block] = given[block * kWidth];
    sums[0] = sum_of(of_blocks);
  }
  __device__ static void add_up(const float* given, float (&sums)[2]) {
    float first[kBlocks], second[kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const float2 both = *reinterpret_cast<const float2*>(given + block * kWidth);
      first[block] = both.x;
      second[block] = both.y;
    }
    sums[0] = sum_of(first);
    sums[1] = sum_of(second);
  }
  // In pairs, so that few additions wait for one another.
  __device__ static float sum_of(float (&terms)[kBlocks]) {
#pragma unroll
    for (int apart = 1; apart < kBlocks; apart *= 2)
#pragma unroll
      for (int i = 0; i + apart < kBlocks; i += 2 * apart) terms[i] += terms[i + apart];
    return terms[0];
  }

  const Args& a_;
  const Cluster cluster_{};
  float* const shared_;
  const int rank_, first_, units_;
  const Rows rows_;
  float* const operands_;
  const float** const sources_;
  float* const latent_at_[2];  // where what this thread makes of its latent lies
  Remote to_[kPeers], barrier_[kPeers];  // where its sums go, and are counted, for the first inboxes
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
