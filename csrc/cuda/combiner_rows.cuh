// combiner_scan with all weights in registers, one or two rows at a time: a step takes a few hundred instructions and two
// barriers of the block. Groups of rows alternate.
//
// In a step, warps wait for the partial sums of all blocks and add them, one thread for each latent. Then all warps compute
// the block's units from the latents, and from the units partial sums, which the lanes of a warp send to the blocks.
//
// Blocks exchange through the shared memory of a cluster (rows_by_cluster.cuh) or through device memory
// (rows_by_words.cuh); these files explain why no sums are overwritten before they have been read. Latents of a step are
// overwritten after the barrier that follows the units of the step before, which all their readers have passed; units
// are overwritten after the barrier that follows the latents.
#pragma once

#include "combiner_rows_directions.cuh"
#include "rows_by_cluster.cuh"
#include "rows_by_words.cuh"

namespace dmm::cuda {

template <class Direction, class Exchange, class K, class Args>
class CombinerRowsBlock {
  using To = ToUnits<K>;
  using From = FromUnits<K>;
  using Layout = RowsLayout<K>;
  using Mine = LatentThread<K>;
  static constexpr int kOperands = Direction::kOperands;

 public:
  __device__ CombinerRowsBlock(const Args& a, float* shared)
      : a_(a),
        blocks_(Exchange::blocks_of(a)),
        shared_(shared),
        rank_(blocks_.rank()),
        first_(rank_ * a.to_units.outputs),
        units_(first_ >= a.units ? 0 : a.units - first_ < a.to_units.outputs ? a.units - first_ : a.to_units.outputs),
        rows_(a.ragged, blocks_, reinterpret_cast<Row*>(shared + Layout::kRowsAt)),
        operands_(shared + Layout::kInbox + Exchange::inboxes(a.ragged.groups()) + thread()),
        sources_(reinterpret_cast<const float**>(shared + Layout::kInbox + Exchange::inboxes(a.ragged.groups()) +
                                                 2 * kOperands * kMostThreads * a.ragged.groups()) +
                 thread()),
        latent_at_{shared + latent_place(0), shared + latent_place(1)} {}

  __device__ void run() {
    Exchange exchange(a_, blocks_, shared_);
    To to;
    to.bring(units_, a_.to_units.inputs,
             [this](int output, int part) { return Direction::to_unit(a_, first_ + output, part); });
    From from;
    from.bring(a_.from_units.outputs, units_,
               [this](int output, int part) { return Direction::from_unit(a_, output, first_ + part); });
    // Also clears the first inboxes, which are added before any sums have arrived.
    for (int i = thread(); i < Layout::kBarriers; i += kMostThreads) shared_[i] = 0.0f;
    for (int i = thread(); i < Exchange::inboxes(rows_.groups()); i += kMostThreads) shared_[Layout::kInbox + i] = 0.0f;
    clear_past_ends(a_, rows_, blocks_);
    const int blocks = Exchange::count(blocks_), stored = (a_.latents + blocks - 1) / blocks;
    const int first_unit = To::first_kept();
    const bool has_unit = To::copy() == 0 && first_unit < units_;
    Direction direction(a_, latent(), has_unit ? first_ + first_unit : a_.units,
                        has_latent() && latent() / stored == rank_);
    float* const unit_at = shared_ + (has_unit ? Layout::kHidden + To::row() * From::kVector +
                                                     lane_place(K::kFromInputs, first_unit)
                                               : Layout::kSpare);
    const bool has_latents = latent() / 32 * 32 < a_.latents;  // the thread's warp has latents
    int active = rows_.groups();
    for (; active > 0 && rows_.longest(active - 1) == 0; --active) direction.skip(pair_of(active - 1).of_latent);

    exchange.start(rows_);
    for (int step = 0; step < 2; ++step) {
      for (int group = 0; group < active; ++group) {
        const Pair pair = pair_of(group);
        if (step == 0) begin_rows(direction, pair, group);
        fetch(direction, pair, group, step);
      }
      copies_end();
    }
    Pair pair = pair_of(0);
    auto turn = exchange.turn_of(0, 0);
    // docs-begin: step
    for (int step = 0, group = 0; active > 0;) {
      copies_done<1>();  // all copies except those issued in the preceding turn
      direction.prepare(pair.of_latent, step, operands(group, step));
      if (has_latents) {
        float sums[Direction::kSums];
        exchange.receive(turn, group, step, sums);
        direction.begin(sums, latent_at_);
      }
      __syncthreads();
      if (step < pair.steps) {
        float sum[1], sums[kGivenAtOnce];
        to.multiply(shared_, sum);
        *unit_at = direction.make_unit(sum[0]);
        __syncthreads();
        from.multiply(shared_ + Layout::kHidden, sums);
        exchange.give(turn, group, step, pair.steps, sums);
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
      turn = exchange.turn_of(group, step);
    }
    // docs-end: step
    exchange.finish(rows_);
  }

 private:
  // The rows of a group of which a thread has a latent and a unit; a missing row has length -1.
  struct Pair {
    Row of_latent, of_unit;
    int steps;  // of the group
  };
  __device__ Pair pair_of(int group) const {
    if constexpr (K::kRows == 1) {
      const Row row = rows_[group];
      return {row, row, row.length};
    }
    return {row_at(group * K::kRows + Mine::row()), row_at(group * K::kRows + To::row()), rows_.longest(group)};
  }
  __device__ Row row_at(int row) const { return row < rows_.count() ? rows_[row] : Row{0, 0, 0, -1}; }

  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static int latent() { return Mine::latent(); }
  __device__ bool has_latent() const { return latent() < a_.latents; }
  // The offset of the first or second value computed from the thread's latent.
  __device__ int latent_place(int i) const {
    const int row = Mine::row() * To::kVector;
    return has_latent() ? row + lane_place(K::kToInputs, Direction::input(latent(), i)) : Layout::kSpare;
  }

  // This thread's operands of a group for a step; the buffer is reused for the step after the next.
  __device__ Operands operands(int group, int step) const {
    return {operands_ + (2 * group + (step & 1)) * kOperands * kMostThreads};
  }
  __device__ const float** source(int group, int i) const { return sources_ + (group * kOperands + i) * kMostThreads; }
  __device__ void begin_rows(const Direction& direction, const Pair& pair, int group) const {
    // Missing rows have pointers too, those of row 0, which are advanced but not dereferenced.
#pragma unroll
    for (int i = 0; i < kOperands; ++i)
      *source(group, i) = direction.operand(i < Direction::kLatentOperands ? pair.of_latent : pair.of_unit, i);
    direction.begin_row(pair.of_latent, operands(group, 0));
  }
  __device__ void fetch(const Direction& direction, const Pair& pair, int group, int step) const {
    const int of_latent = Direction::time(pair.of_latent, step), of_unit = Direction::time(pair.of_unit, step);
    const Operands to = operands(group, step);
    const float* from[kOperands];  // all pointers are computed before the first copy, for instruction-level parallelism
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

  const Args& a_;
  const typename Exchange::Blocks blocks_;
  float* const shared_;
  const int rank_, first_, units_;
  const ClusterRows rows_;
  float* const operands_;
  const float** const sources_;
  float* const latent_at_[2];  // the destinations of the values computed from this thread's latent
};

template <int kBlocks, int kUnits, int kToInputs, int kOutputs, int kFromInputs, int kRows>
__global__ __launch_bounds__(kMostThreads, 1) void combiner_rows_fwd_kernel(const __grid_constant__ CombinerRows a) {
  if constexpr (kHasClusters || kBlocks == 1) {
    using K = RowsKernel<kUnits, kToInputs, kOutputs, kFromInputs, kRows>;
    DMM_SHARED(float, shared);
    using Exchange = RowsByCluster<kBlocks, K, RowsForward::kSums, CombinerRows>;
    CombinerRowsBlock<RowsForward, Exchange, K, CombinerRows>(a, shared).run();
  }
}

template <int kBlocks, int kUnits, int kToInputs, int kOutputs, int kFromInputs, int kRows>
__global__ __launch_bounds__(kMostThreads, 1) void combiner_rows_bwd_kernel(
    const __grid_constant__ CombinerRowsBackward a) {
  if constexpr (kHasClusters || kBlocks == 1) {
    using K = RowsKernel<kUnits, kToInputs, kOutputs, kFromInputs, kRows>;
    DMM_SHARED(float, shared);
    using Exchange = RowsByCluster<kBlocks, K, RowsBackward::kSums, CombinerRowsBackward>;
    CombinerRowsBlock<RowsBackward, Exchange, K, CombinerRowsBackward>(a, shared).run();
  }
}

template <class K>  // a RowsKernel
__global__ __launch_bounds__(kMostThreads, 1) void combiner_words_fwd_kernel(const __grid_constant__ CombinerRows a) {
  DMM_SHARED(float, shared);
  using Exchange = RowsByWords<K, RowsForward::kSums, CombinerRows>;
  CombinerRowsBlock<RowsForward, Exchange, K, CombinerRows>(a, shared).run();
}

template <class K>
__global__ __launch_bounds__(kMostThreads, 1) void combiner_words_bwd_kernel(
    const __grid_constant__ CombinerRowsBackward a) {
  DMM_SHARED(float, shared);
  using Exchange = RowsByWords<K, RowsBackward::kSums, CombinerRowsBackward>;
  CombinerRowsBlock<RowsBackward, Exchange, K, CombinerRowsBackward>(a, shared).run();
}

}  // namespace dmm::cuda
