// combiner_scan on tensor cores: groups of eight rows alternate, and all weights are in registers.
//
// Every block of a cluster owns some of the units and a slice of the latents. A step of a group has two halves. In the
// first, the owner of a latent adds the partial sums of all blocks, computes the latent and sends it to all blocks (an
// all-gather). In the second, a block computes its units from all latents, and from the units partial sums for every
// latent, which it sends to the latent's owner (a reduce-scatter). So a block receives 3 Z elements per row and step,
// whereas an exchange of all partial sums with all blocks would receive 2 Z from each.
//
// The two halves are successive steps of one Exchange, and a hang's record has the number of the half: half 2 s is the
// all-gather of step s, half 2 s + 1 its reduce-scatter. The two barriers of a group alternate, so that one counts the
// latents and the other the sums. Each half has a single buffer, which is free when it is written again:
//  - Latents of step s + 1 arrive at a block after their owners have received all sums of step s, including this block's.
//    The block sent those after a barrier of its threads, which all its warps reached after they had waited for the latents
//    of step s and multiplied them.
//  - Sums of step s + 1 arrive at an owner after each block has received all latents of that step. The owner's warps sent
//    theirs after they had waited for the sums of step s and added them: lanes that send together have met in a shuffle.
//  - For the same reason no phase of a barrier can end before all threads have waited for the one before. This requires
//    every block to send sums to every owner, including blocks without units, which send zeros. A block that owns no latents
//    receives no sums: the end of these phases depends only on itself, and only the warp that starts the next waits for it.
//
// Units have two buffers that alternate with the calls of make_units, whatever the group. A warp writes to one after it has
// passed the barrier of the preceding call, which all its readers of the call before that have reached.
#pragma once

#include "combiner_tensor_directions.cuh"
#include "exchange.cuh"
#include "tensor_weights.cuh"

namespace dmm::cuda {

template <class Direction, int kBlocks, int kUnitTiles, int kInputSteps, int kOutputTiles, int kUnitSteps, class Args>
class CombinerTensorBlock {
  using ToUnits = TensorWeights<kUnitTiles, kInputSteps>;
  using FromUnits = TensorWeights<kOutputTiles, kUnitSteps>;
  static constexpr int kSums = Direction::kSums, kMade = Direction::kMade;
  static constexpr int kLatentOperands = Direction::kLatentOperands;
  static constexpr int kUnitOperands = Direction::kHasUnitOperand ? 4 * kUnitTiles : 0;
  // A store of partial sums has two of each of two rows: those of a latent, or of two latents.
  static constexpr int kPairLatents = 2 / kSums, kPairNumbers = 2 * kTensorRows;
  // A store of latents has four numbers. The lanes that computed them divide the destination blocks among themselves.
  static constexpr int kSharers = 4 / kMade, kPeers = (kBlocks + kSharers - 1) / kSharers;
  static constexpr int kLatentsOfWarp = 32 / kTensorRows;
  static_assert(kBlocks > 1, "a single block has nothing to exchange");

 public:
  __device__ CombinerTensorBlock(const Args& a, float* shared)
      : a_(a),
        direction_{a},
        shared_(shared),
        rank_(cluster_.rank()),
        first_unit_(rank_ * a.to_units.outputs),
        units_(clamp(a.units - first_unit_, a.to_units.outputs)),
        slice_(latent_slice(a.latents, kBlocks)),
        latents_(clamp(a.latents - rank_ * slice_, slice_)),
        layout_(kInputSteps, kUnitSteps, kBlocks, slice_, kSums, (1 + 2) * kLatentOperands + kUnitOperands),
        rows_(a.ragged, cluster_, reinterpret_cast<Row*>(shared)) {
    float* const chunk = group_at(0) + latent_row() * ToUnits::kStride + kMade * (rank_ * slice_ + first_of_chunk());
#pragma unroll
    for (int i = 0; i < kPeers; ++i) {
      // Each lane starts with its own block, so that not all store to the same block first.
      const int peer = (rank_ + sharer() + i * kSharers) % kBlocks;
      latents_to_[i] = remote(peer, chunk);
      latents_barrier_[i] = remote(peer, shared + TensorLayout::kBarriers);
    }
#pragma unroll
    for (int i = 0; i < kOutputTiles; ++i) {
      const int pairs = slice_ / kPairLatents, owner = pair(i) < all_pairs() ? pair(i) / pairs : rank_;
      sums_to_[i] = remote(owner, group_at(0) + layout_.inbox + (rank_ * pairs + pair(i) % pairs) * kPairNumbers +
                                      2 * FromUnits::place());
      sums_barrier_[i] = remote(owner, shared + TensorLayout::kBarriers);
    }
  }

  __device__ void run() {
    ToUnits to;
    to.bring([this](int tile, bool is_lower, int input) {
      const int unit = 16 * tile + ToUnits::quarter() + 8 * is_lower;
      return unit < units_ && input < a_.to_units.inputs ? direction_.to_unit(first_unit_ + unit, input) : 0.0f;
    });
    FromUnits from;
    from.bring([this](int tile, bool is_lower, int unit) {
      const int output = 2 * (kTensorRows * tile + FromUnits::quarter()) + is_lower;
      return output < a_.from_units.outputs && unit < units_ ? direction_.from_unit(output, first_unit_ + unit) : 0.0f;
    });
    float constants[kUnitTiles][2];  // constants of the thread's units
#pragma unroll
    for (int i = 0; i < kUnitTiles; ++i)
      for (int k = 0; k < 2; ++k)
        constants[i][k] = unit(i, k) < units_ ? direction_.constant(first_unit_ + unit(i, k)) : 0.0f;
    // Inputs that no block sends have to be zero, since they are multiplied too.
    clear(shared_ + TensorLayout::kHidden, 2 * kTensorRows * FromUnits::kStride);
    for (int group = 0; group < rows_.groups(); ++group) clear(group_at(group), kTensorRows * ToUnits::kStride);
    clear_past_ends(a_, rows_, cluster_);

    Exchange exchange(cluster_, kBlocks, reinterpret_cast<uint64_t*>(shared_ + TensorLayout::kBarriers), a_.hang);
    exchange.start(rows_.groups(), [this](int group, int half) { return bytes(group, half); });
    for (int group = 0; group < rows_.groups(); ++group) {
      if (counts() && latents_ == 0 && rows_.longest(group) > 0) exchange.expect(group, 1, 0);
      const Row row = row_at(group, latent_row());
      if (has_latent() && row.length >= 0) {
#pragma unroll
        for (int i = 0; i < kLatentOperands; ++i) *latent_source(group, i) = direction_.latent_source(row, latent(), i);
        direction_.begin_row(row, latent(), latent_operand(group, 0));
      }
      fetch_latent(group, row, 0);
      fetch_units(group, 0);
    }
    copies_end();
    copies_end();  // an empty group of copies in place of a preceding turn
    // The transfer of latents and sums overlaps with the work of other groups. With three or more groups, one computes
    // latents and then the preceding one computes units; with two, both compute latents and then both compute units.
    Turns latents(rows_), units(rows_);
    for (int ahead = 0; latents.active > 0;) {
      make_latents(exchange, latents);
      latents.next(rows_);
      const int most = latents.active > 2 ? 1 : latents.group > 0 ? 2 : 0;
      for (++ahead; ahead > most; --ahead, units.next(rows_))
        if (units.step < units.steps) make_units(exchange, units, to, from, constants);
    }
    exchange.finish(rows_.groups(), [this](int group) { return 2 * rows_.longest(group); });
  }

 private:
  // The groups in alternating order: each runs as many steps as its longest row has, plus one for the last latents.
  struct Turns {
    int group = 0, step = 0, active, steps;  // `steps` of the group

    __device__ explicit Turns(const ClusterRows& rows) : active(rows.groups()), steps(rows.longest(0)) {}
    __device__ void next(const ClusterRows& rows) {
      if (++group >= active) {
        group = 0;
        ++step;
        while (active > 0 && rows.longest(active - 1) < step) --active;
      }
      steps = rows.longest(group);
    }
  };

  __device__ void make_latents(Exchange& exchange, const Turns& turn) const {
    const int group = turn.group, step = turn.step;
    if (thread() / 32 == kWarpsOfBlock - 1 || first_of_warp() < latents_) {
      const Row row = row_at(group, latent_row());
      copies_done<1>();
      float given[kLatentOperands], sums[kSums] = {}, made[kMade] = {};
#pragma unroll
      for (int i = 0; i < kLatentOperands; ++i) given[i] = *latent_operand(group, i);
      typename Direction::Latent mine(row, step, given);
      if (step > 0) exchange.wait(group, 2 * step - 1, [&] { return rows_of(group); });
      if (has_latent()) {
        if (step > 0) add_up(group, sums);
        mine.make(sums, made);
      }
      if (step < turn.steps) {
        give_latents(exchange, group, made);
        if (counts() && step > 0) exchange.expect(group, 2 * step + 1, bytes(group, 2 * step + 1));
      }
      if (has_latent()) mine.store(direction_, row, step, latent());
      fetch_latent(group, row, step + 1);
    }
    copies_end();
  }

  __device__ void make_units(Exchange& exchange, const Turns& turn, const ToUnits& to, const FromUnits& from,
                             const float (&constants)[kUnitTiles][2]) {
    const int group = turn.group, step = turn.step;
    float sums[kUnitTiles][4] = {}, results[kUnitTiles][4][Direction::kResults];
    float* const hidden = shared_ + TensorLayout::kHidden + (turn_ ^= 1) * kTensorRows * FromUnits::kStride;
    exchange.wait(group, 2 * step, [&] { return rows_of(group); });
    __syncwarp();  // mma needs all lanes converged, and a wait may end lane by lane
    to.multiply(tiles(kUnitTiles, (units_ + 15) / 16), group_at(group), sums);
    copies_done<1>();
#pragma unroll
    for (int i = 0; i < kUnitTiles; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        // Computed for missing units too, which allows instruction-level parallelism.
        const float given = Direction::kHasUnitOperand ? *unit_operand(group, i, k) : constants[i][k / 2];
        sums[i][k] = to_tf32(Direction::make_unit(sums[i][k], given, results[i][k]));
      }
    }
#pragma unroll
    for (int i = 0; i < kUnitTiles; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (const int row = ToUnits::place() + k % 2; unit(i, k / 2) < units_)
          hidden[row * FromUnits::kStride + unit(i, k / 2)] = sums[i][k];
    }
    __syncthreads();
    give_sums(exchange, group, hidden, from);
    const int next = 2 * step + 2;
    if (counts() && step + 1 < turn.steps) exchange.expect(group, next, bytes(group, next));
    if (direction_.stores_units()) {
      for_units(group, step, [&](int i, int k, int64_t at) {
#pragma unroll
        for (int n = 0; n < Direction::kResults; ++n) direction_.result(n)[at] = results[i][k][n];
      });
    }
    fetch_units(group, step + 1);
    copies_end();
  }

  // Adds the partial sums of the thread's latent from all blocks.
  __device__ void add_up(int group, float (&sums)[kSums]) const {
    const int local = first_of_warp() + of_warp(), pairs = slice_ / kPairLatents;
    const float* const from = group_at(group) + layout_.inbox + local / kPairLatents * kPairNumbers +
                              2 * latent_row() + local % kPairLatents;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] += from[block * pairs * kPairNumbers + i];
    }
  }

  // Called by all lanes of the warp.
  __device__ void give_latents(const Exchange& exchange, int group, const float (&made)[kMade]) const {
    float rounded[kMade], four[4];
#pragma unroll
    for (int i = 0; i < kMade; ++i) rounded[i] = to_tf32(made[i]);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      four[i] = __shfl_sync(~0u, rounded[i % kMade],
                            latent_row() + kTensorRows * (of_warp() / kSharers * kSharers + i / kMade));
    const bool is_wanted = first_of_chunk() < latents_ && latent_row() < rows_of(group) && !exchange.is_lost();
#pragma unroll
    for (int i = 0; i < kPeers; ++i) {
      const bool has_peer = sharer() + i * kSharers < kBlocks;
      transaction_store(is_wanted && has_peer, latents_to_[i] + 4 * group * layout_.group, four,
                        latents_barrier_[i] + 16 * group);
    }
  }

  __device__ void give_sums(const Exchange& exchange, int group, const float* hidden, const FromUnits& from) const {
    float sums[kOutputTiles][4] = {};
    from.multiply(tiles(kOutputTiles, (all_pairs() + 7) / 8), hidden, sums);
    const bool has_rows = FromUnits::place() < rows_of(group) && !exchange.is_lost();
#pragma unroll
    for (int i = 0; i < kOutputTiles; ++i) {
      const float four[4] = {sums[i][0], sums[i][2], sums[i][1], sums[i][3]};
      transaction_store(has_rows && pair(i) < all_pairs(), sums_to_[i] + 4 * group * layout_.group, four,
                        sums_barrier_[i] + (16 * group + 8));
    }
  }

  // Bytes received by this block in half a step; 0 past the last step.
  __device__ int bytes(int group, int half) const {
    if (half >= 2 * rows_.longest(group)) return 0;
    const int rows = rows_of(group);
    if (half % 2 == 0) return 16 * rows * ((a_.latents + kSharers - 1) / kSharers);
    return 16 * ((rows + 1) / 2) * kBlocks * ((latents_ + kPairLatents - 1) / kPairLatents);
  }

  // Prefetches the thread's own operands one step ahead.
  __device__ void fetch_latent(int group, const Row& row, int step) const {
    const int time = Direction::latent_time(row, step);
    if (!has_latent() || time < 0 || time >= row.length) return;
    const float* from[kLatentOperands];  // all of them before the first copy, so that they are worked out side by side
#pragma unroll
    for (int i = 0; i < kLatentOperands; ++i) from[i] = *latent_source(group, i) + time * direction_.latent_stride(i);
#pragma unroll
    for (int i = 0; i < kLatentOperands; ++i) copy_async(latent_operand(group, i), from[i]);
  }
  __device__ void fetch_units(int group, int step) const {
    if constexpr (Direction::kHasUnitOperand)
      for_units(group, step, [&](int i, int k, int64_t at) {
        copy_async(unit_operand(group, i, k), direction_.unit_operand() + at);
      });
  }
  // visit(tile, number, place) for the thread's units of rows that have such a step; `place` is in [P, B, T, H].
  template <class Visit>
  __device__ void for_units(int group, int step, Visit visit) const {
    const Row rows[2] = {row_at(group, ToUnits::place()), row_at(group, ToUnits::place() + 1)};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (step >= rows[k].length) continue;
      const int time = Direction::unit_time(rows[k], step);
      const int64_t first = (int64_t{rows[k].index} * a_.ragged.steps + time) * a_.units + first_unit_;
#pragma unroll
      for (int i = 0; i < kUnitTiles; ++i) {
#pragma unroll
        for (int lower = 0; lower < 2; ++lower)
          if (unit(i, lower) < units_) visit(i, 2 * lower + k, first + unit(i, lower));
      }
    }
  }

  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  // One thread sets the number of expected bytes. Its warp has the least work, and waits for all of them.
  __device__ static bool counts() { return thread() == kMostThreads - 1; }
  __device__ static void clear(float* first, int count) {
    for (int i = thread(); i < count; i += kMostThreads) first[i] = 0.0f;
  }
  __device__ static int clamp(int x, int most) { return x < 0 ? 0 : x < most ? x : most; }
  // A group may have fewer rows; a missing row has length -1.
  __device__ int rows_of(int group) const {
    return clamp(rows_.count() - rows_.first(group), a_.ragged.rows_per_group);
  }
  __device__ Row row_at(int group, int row) const {
    return row < rows_of(group) ? rows_[rows_.first(group) + row] : Row{0, 0, 0, -1};
  }

  // The thread's latent: lanes of a warp have eight rows of four latents.
  __device__ static int latent_row() { return thread() % kTensorRows; }
  __device__ static int of_warp() { return thread() % 32 / kTensorRows; }
  __device__ static int first_of_warp() { return thread() / 32 * kLatentsOfWarp; }
  __device__ bool has_latent() const { return first_of_warp() + of_warp() < latents_; }
  __device__ int latent() const { return rank_ * slice_ + first_of_warp() + of_warp(); }
  // The latents of one store, and the lane's index among the lanes that computed them.
  __device__ static int first_of_chunk() { return first_of_warp() + of_warp() / kSharers * kSharers; }
  __device__ static int sharer() { return of_warp() % kSharers; }

  __device__ static int unit(int tile, int lower) { return 16 * ToUnits::tile(tile) + ToUnits::quarter() + 8 * lower; }
  // The pair of outputs of a lane in a tile, and the number of pairs.
  __device__ static int pair(int tile) { return kTensorRows * FromUnits::tile(tile) + FromUnits::quarter(); }
  __device__ int all_pairs() const { return (a_.latents + kPairLatents - 1) / kPairLatents; }
  // The number of a warp's tiles, given those of the block.
  __device__ static int tiles(int most, int of_block) {
    return clamp((of_block - ToUnits::warp() + kWarpsOfBlock - 1) / kWarpsOfBlock, most);
  }

  __device__ float* group_at(int group) const { return shared_ + layout_.groups + group * layout_.group; }
  __device__ float* latent_operand(int group, int i) const {
    return group_at(group) + layout_.operands + i * kMostThreads + thread();
  }
  // The address of the operand at time 0 in device memory.
  __device__ const float** latent_source(int group, int i) const {
    const int before = kLatentOperands + kUnitOperands + 2 * i;
    return reinterpret_cast<const float**>(group_at(group) + layout_.operands + before * kMostThreads) + thread();
  }
  __device__ float* unit_operand(int group, int tile, int number) const {
    return latent_operand(group, kLatentOperands + 4 * tile + number);
  }

  const Args& a_;
  const Direction direction_;
  const Cluster cluster_{};
  float* const shared_;
  const int rank_, first_unit_, units_, slice_;
  const int latents_;  // latents owned by the block
  const TensorLayout layout_;
  const ClusterRows rows_;
  // The destinations and barriers of the thread's stores, for the first group.
  Remote latents_to_[kPeers], latents_barrier_[kPeers], sums_to_[kOutputTiles], sums_barrier_[kOutputTiles];
  int turn_ = 0;
};

template <int... kSizes>
__global__ __launch_bounds__(kMostThreads, 1) void combiner_tensor_fwd_kernel(
    const __grid_constant__ CombinerTensor a) {
  if constexpr (kHasClusters) {
    DMM_SHARED(float, shared);
    CombinerTensorBlock<TensorForward, kSizes..., CombinerTensor>(a, shared).run();
  }
}

template <int... kSizes>
__global__ __launch_bounds__(kMostThreads, 1) void combiner_tensor_bwd_kernel(
    const __grid_constant__ CombinerTensorBackward a) {
  if constexpr (kHasClusters) {
    DMM_SHARED(float, shared);
    CombinerTensorBlock<TensorBackward, kSizes..., CombinerTensorBackward>(a, shared).run();
  }
}

}  // namespace dmm::cuda
