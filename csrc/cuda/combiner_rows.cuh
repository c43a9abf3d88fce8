// combiner_scan with all weights in registers, one row or two at a time: a step takes a few hundred instructions and two
// barriers of the block. Groups of rows take turns.
//
// A step: warps wait for what the blocks gave and add it up, a thread for each latent; all warps make the block's units of
// the latents, and then what those add to the sums, which lanes of a warp deal to the blocks.
//
// Threads are not in step, so that a buffer and a barrier of the exchange are safe only because of these:
//  - A block gives for step k + 2 of a group when its warps that have latents have waited for k + 1. All of k + 1 was
//    given, by every block, after the block's barriers of that step, to which these warps came when they had waited for k
//    and added it up. So no warp reads what is overwritten, or waits for a phase that is over. A block alone has a third
//    barrier in place of the wait.
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

template <class Direction, int kBlocks, int kUnits, int kToInputs, int kOutputs, int kFromInputs, int kRows, class Args>
class CombinerRowsBlock {
  using ToUnits = LaneWeights<kUnits, kToInputs, 1, kRows>;
  using FromUnits = LaneWeights<kOutputs, kFromInputs, kGivenAtOnce, kRows>;
  static constexpr int kOperands = Direction::kOperands;
  static constexpr int kWidth = kLaneGroups * kOutputs, kInboxOfBlock = kRows * kWidth;
  static constexpr int kPeers = (kBlocks + FromUnits::kCopies - 1) / FromUnits::kCopies;
  static constexpr int kLatentThreads = kMostThreads / kRows;  // a row's, with those that have no latent
  // Places in shared memory, in numbers.
  static constexpr int kHidden = kRows * ToUnits::kVector;
  static constexpr int kSpare = kHidden + kRows * FromUnits::kVector;
  static constexpr int kBarriers = kSpare + kSpareNumbers, kRowsAt = kBarriers + kRowBytes / 4 * kMostRows;
  static constexpr int kInbox = kRowsAt + kRowBytes / 4 * kMostRows;

 public:
  __device__ CombinerRowsBlock(const Args& a, float* shared)
      : a_(a),
        shared_(shared),
        rank_(cluster_.rank()),
        first_(rank_ * a.to_units.outputs),
        units_(first_ >= a.units ? 0 : a.units - first_ < a.to_units.outputs ? a.units - first_ : a.to_units.outputs),
        rows_(a.ragged, cluster_, reinterpret_cast<Row*>(shared + kRowsAt)),
        operands_(shared + kInbox + inbox(a.ragged.groups(), 0) + thread()),
        sources_(reinterpret_cast<const float**>(shared + kInbox + inbox(a.ragged.groups(), 0) +
                                                 2 * kOperands * kMostThreads * a.ragged.groups()) +
                 thread()),
        latent_at_{shared + latent_place(0), shared + latent_place(1)} {
    // Each lane begins with its own block, so that none is the first of all.
#pragma unroll
    for (int i = 0; i < kPeers; ++i) {
      const int peer = (rank_ + FromUnits::copy() + i * FromUnits::kCopies) % kBlocks;
      to_[i] = remote(peer, shared + kInbox + rank_ * kInboxOfBlock + FromUnits::row() * kWidth + FromUnits::first_kept());
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
    for (int i = thread(); i < inbox(rows_.groups(), 0); i += kMostThreads) shared_[kInbox + i] = 0.0f;
    clear_past_ends(a_, rows_, cluster_);
    const int first_unit = ToUnits::first_kept(), stored = (a_.latents + kBlocks - 1) / kBlocks;
    const bool has_unit = ToUnits::copy() == 0 && first_unit < units_;
    Direction direction(a_, latent(), has_unit ? first_ + first_unit : a_.units,
                        has_latent() && latent() / stored == rank_);
    float* const unit_at =
        shared_ + (has_unit ? kHidden + ToUnits::row() * FromUnits::kVector + lane_place(kFromInputs, first_unit) : kSpare);
    const bool has_latents = latent() / 32 * 32 < a_.latents;  // its warp does
    const bool has_last_peer = FromUnits::copy() + (kPeers - 1) * FromUnits::kCopies < kBlocks;
    int active = rows_.groups();
    for (; active > 0 && rows_.longest(active - 1) == 0; --active) direction.skip(pair_of(active - 1).of_latent);

    Exchange exchange(cluster_, kBlocks, reinterpret_cast<uint64_t*>(shared_ + kBarriers), a_.hang);
    exchange.start(rows_.groups(), [this](int group, int step) { return bytes(rows_.longest(group), step); });
    for (int step = 0; step < 2; ++step) {
      for (int group = 0; group < active; ++group) {
        const Pair pair = pair_of(group);
        if (step == 0) begin_rows(direction, pair, group);
        fetch(direction, pair, group, step);
      }
      copies_end();
    }
    Pair pair = pair_of(0);
    Turn turn = turn_of(0, 0);
    for (int step = 0, group = 0; active > 0;) {
      copies_done<1>();  // all but what the turn before asked for
      direction.prepare(pair.of_latent, step, operands(group, step));
      if (has_latents) {
        if (kBlocks > 1 && step > 0) exchange.wait(group, step - 1, [] { return kRows; });
        float sums[Direction::kSums];
        add_up(shared_ + turn.received, sums);
        direction.begin(sums, latent_at_);
      }
      __syncthreads();
      if (step < pair.steps) {
        float sum[1], sums[kGivenAtOnce];
        to.multiply(shared_, sum);
        *unit_at = direction.make_unit(sum[0]);
        __syncthreads();
        from.multiply(shared_ + kHidden, sums);
        give(exchange, turn, sums, has_last_peer);
        if (thread() == 0 && step > 0 && step + 1 < pair.steps) exchange.expect(group, step + 1, bytes(pair.steps, step + 1));
        direction.store_unit(pair.of_unit, step);
        fetch(direction, pair, group, step + 2);
      }
      copies_end();
      direction.store_latent(pair.of_latent, step);
      if (++group == active) {
        while (active > 0 && rows_.longest(active - 1) == step) --active;
        group = 0;
        ++step;
      }
      if (active > 0) pair = pair_of(group);
      turn = turn_of(group, step);
    }
    exchange.finish(rows_.groups(), [this](int group) { return rows_.longest(group); });
  }

 private:
  // The rows of a group that a thread has a latent of, and a unit; one that is not there has the length -1.
  struct Pair {
    Row of_latent, of_unit;
    int steps;  // of the group
  };
  __device__ Pair pair_of(int group) const {
    if constexpr (kRows == 1) {
      const Row row = rows_[group];
      return {row, row, row.length};
    }
    return {row_at(group * kRows + thread() / kLatentThreads), row_at(group * kRows + ToUnits::row()), rows_.longest(group)};
  }
  __device__ Row row_at(int row) const { return row < rows_.count() ? rows_[row] : Row{0, 0, 0, -1}; }

  // Places of a turn, known before it begins.
  struct Turn {
    int received, given;  // of what this thread adds up and of what the block gives itself, in shared memory
    Remote sums[kPeers], barriers[kPeers];  // where its sums go, and are counted
  };
  __device__ Turn turn_of(int group, int step) const {
    Turn turn;
    turn.received = kInbox + inbox(group, step + 1) + thread() / kLatentThreads * kWidth + Direction::kSums * latent();
    turn.given = kInbox + inbox(group, step);
#pragma unroll
    for (int i = 0; i < kPeers; ++i) {
      turn.sums[i] = to_[i] + 4 * inbox(group, step);
      turn.barriers[i] = barrier_[i] + 8 * (2 * group + (step & 1));
    }
    return turn;
  }

  // Lanes that have the same sums deal them to the blocks.
  __device__ void give(const Exchange& exchange, const Turn& turn, const float (&sums)[kGivenAtOnce],
                       bool has_last_peer) const {
    const bool has_sums = FromUnits::group() < a_.from_units.groups() && !exchange.is_lost();
    if constexpr (kBlocks == 1) {
      float* const own = shared_ + turn.given + FromUnits::row() * kWidth + FromUnits::first_kept();
      if (has_sums && FromUnits::copy() == 0) *reinterpret_cast<float2*>(own) = float2{sums[0], sums[1]};
      __syncthreads();
    } else if (has_sums) {
#pragma unroll
      for (int i = 0; i < kPeers; ++i)
        if ((i + 1) * FromUnits::kCopies <= kBlocks || has_last_peer)
          transaction_store(true, turn.sums[i], sums, turn.barriers[i]);
    }
  }

  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static int latent() { return thread() % kLatentThreads; }
  __device__ bool has_latent() const { return latent() < a_.latents; }
  // Where the first, or second, thing made of the thread's latent lies.
  __device__ int latent_place(int i) const {
    const int row = thread() / kLatentThreads * ToUnits::kVector;
    return has_latent() ? row + lane_place(kToInputs, Direction::input(latent(), i)) : kSpare;
  }
  // How far a group's inbox for a step is from the first. A step writes one while the other is still read.
  __device__ static int inbox(int group, int step) { return (2 * group + (step & 1)) * kBlocks * kInboxOfBlock; }
  // Bytes that a block receives from all blocks, of a group of so many steps; 0 past the last.
  __device__ int bytes(int steps, int step) const {
    return step < steps ? 4 * kRows * a_.from_units.groups() * kOutputs * kBlocks : 0;
  }

  // This thread's operands of a group for a step, to which come those of the step after the next.
  __device__ Operands operands(int group, int step) const {
    return {operands_ + (2 * group + (step & 1)) * kOperands * kMostThreads};
  }
  __device__ const float** source(int group, int i) const { return sources_ + (group * kOperands + i) * kMostThreads; }
  __device__ void begin_rows(const Direction& direction, const Pair& pair, int group) const {
    // Of a row that is not there as well, whose places are those of row 0: they move at every step, and are not followed.
#pragma unroll
    for (int i = 0; i < kOperands; ++i)
      *source(group, i) = direction.operand(i < Direction::kLatentOperands ? pair.of_latent : pair.of_unit, i);
    direction.begin_row(pair.of_latent, operands(group, 0));
  }
  __device__ void fetch(const Direction& direction, const Pair& pair, int group, int step) const {
    const int of_latent = Direction::time(pair.of_latent, step), of_unit = Direction::time(pair.of_unit, step);
    const Operands to = operands(group, step);
    const float* from[kOperands];  // all of them before the first copy, so that they are worked out side by side
#pragma unroll
    for (int i = 0; i < kOperands; ++i)
      from[i] = *source(group, i) + (i < Direction::kLatentOperands ? of_latent : of_unit) * direction.operand_stride(i);
    if (has_latent() && of_latent >= 0 && of_latent < pair.of_latent.length) {
#pragma unroll
      for (int i = 0; i < Direction::kLatentOperands; ++i) copy_async(&to[i], from[i]);
    }
    if (direction.unit < a_.units && of_unit >= 0 && of_unit < pair.of_unit.length) {
#pragma unroll
      for (int i = Direction::kLatentOperands; i < kOperands; ++i) copy_async(&to[i], from[i]);
    }
  }

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
  const ClusterRows rows_;
  float* const operands_;
  const float** const sources_;
  float* const latent_at_[2];  // where what this thread makes of its latent lies
  Remote to_[kPeers], barrier_[kPeers];  // where its sums go, and are counted, for the first inboxes
};

template <int kBlocks, int kUnits, int kToInputs, int kOutputs, int kFromInputs, int kRows>
__global__ __launch_bounds__(kMostThreads, 1) void combiner_rows_fwd_kernel(const __grid_constant__ CombinerRows a) {
  if constexpr (kHasClusters || kBlocks == 1) {
    DMM_SHARED(float, shared);
    CombinerRowsBlock<RowsForward, kBlocks, kUnits, kToInputs, kOutputs, kFromInputs, kRows, CombinerRows>(a, shared).run();
  }
}

template <int kBlocks, int kUnits, int kToInputs, int kOutputs, int kFromInputs, int kRows>
__global__ __launch_bounds__(kMostThreads, 1) void combiner_rows_bwd_kernel(
    const __grid_constant__ CombinerRowsBackward a) {
  if constexpr (kHasClusters || kBlocks == 1) {
    DMM_SHARED(float, shared);
    CombinerRowsBlock<RowsBackward, kBlocks, kUnits, kToInputs, kOutputs, kFromInputs, kRows, CombinerRowsBackward>(
        a, shared).run();
  }
}

}  // namespace dmm::cuda
