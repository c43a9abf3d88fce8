// rnn_scan for few rows a cluster, whose outputs belong to warps (warp_product.cuh). In a step a warp waits for the
// state, multiplies it, and its outputs' next state goes to all blocks. There are two ways to get it there:
//
// Each warp gives its own, and there is no block barrier: the warps of a block may be up to two steps apart.
//
// Or the warps put theirs into the block's own state, meet at a block barrier, and then each gives all of the block's
// to a block or two: fewer messages, of more bytes, which costs the wait for the slowest warp.
//
// The argument of exchange.cuh for two barriers, and two states, that take turns holds for warps as it does for blocks.
// Every warp of every block gives all rows of a group at every step but the last, also rows that have not begun or
// have ended, and also where its outputs are no units. So a phase ends when all warps have given, each after it had read
// the state before: that state may be overwritten, and the barrier of the step before be told what to expect next. Where
// a block gives, a warp gives after all of the block's have read.
#pragma once

#include "exchange.cuh"
#include "matrix.cuh"
#include "rnn_warp_rows.cuh"

namespace dmm::cuda {

// The rows of a group in ones and twos. A state of theirs is [rows][units].
template <class Direction, int kChunks, int kRows>
class WarpGroup {
  static constexpr int kHead = kRows < 2 ? kRows : 2;
  using Head = WarpRows<Direction, kChunks, kHead>;
  using Rest = WarpGroup<Direction, kChunks, kRows - kHead>;
  static constexpr int kNumbers = kHead * Head::kUnits;

 public:
  __device__ WarpGroup(const Direction& direction, const Lane& lane, const Rows& rows, int first, int longest, int unit)
      : head_(direction, lane, rows, first, longest, unit), rest_(direction, lane, rows, first + 2, longest, unit) {}

  __device__ void fetch(int t) { head_.fetch(t), rest_.fetch(t); }
  __device__ void begin(const Recipient& recipient, int from, int to, int barrier) {
    head_.begin(recipient, from, to, barrier), rest_.begin(recipient, from + kNumbers, to + kNumbers, barrier);
  }
  template <class Weights>
  __device__ void multiply(const Weights& weights, const float* shared) {
    head_.multiply(weights, shared), rest_.multiply(weights, shared);
  }
  __device__ void add_up() { head_.add_up(), rest_.add_up(); }
  template <bool kTanh>
  __device__ void advance(int t) {
    head_.template advance<kTanh>(t), rest_.template advance<kTanh>(t);
  }
  __device__ void give(bool is_wanted, const Recipient& recipient) const {
    head_.give(is_wanted, recipient), rest_.give(is_wanted, recipient);
  }
  __device__ void put(float* state) const { head_.put(state), rest_.put(state + kNumbers); }
  __device__ void keep(int t) { head_.keep(t), rest_.keep(t); }

 private:
  Head head_;
  Rest rest_;
};

template <class Direction, int kChunks>
class WarpGroup<Direction, kChunks, 0> {
 public:
  __device__ WarpGroup(const Direction&, const Lane&, const Rows&, int, int, int) {}
  __device__ void fetch(int) {}
  __device__ void begin(const Recipient&, int, int, int) {}
  template <class Weights>
  __device__ void multiply(const Weights&, const float*) {}
  __device__ void add_up() {}
  template <bool kTanh>
  __device__ void advance(int) {}
  __device__ void give(bool, const Recipient&) const {}
  __device__ void put(float*) const {}
  __device__ void keep(int) {}
};

// All groups from number kFirst on; `visit(group)` of each.
template <class Direction, int kChunks, int kRows, int kPerGroup, int kFirst = 0>
class WarpGroups {
  static constexpr int kHere = kRows < kPerGroup ? kRows : kPerGroup;

 public:
  static constexpr int kIndex = kFirst, kCount = kHere;
  static constexpr int kState = kHere * 128 * kChunks;                    // numbers of a state
  static constexpr int kStates = 2 * kFirst * kPerGroup * 128 * kChunks;  // numbers before the group's two
  const int longest, steps;
  WarpGroup<Direction, kChunks, kHere> rows;

  __device__ WarpGroups(const Direction& direction, const Lane& lane, const Rows& all, int unit)
      : longest(kFirst * kPerGroup < all.count() ? all.longest(kFirst) : 0),
        steps(direction.steps(longest)),
        rows(direction, lane, all, kFirst * kPerGroup, longest, unit),
        others_(direction, lane, all, unit) {}

  // All threads of the block fill both states.
  __device__ void fill(const Direction& direction, const Rows& all, float* states) const {
    for (int unit = static_cast<int>(threadIdx.x); unit < 128 * kChunks; unit += static_cast<int>(blockDim.x)) {
      float starts[kHere];
#pragma unroll
      for (int r = 0; r < kHere; ++r) {
        const int row = kFirst * kPerGroup + r;
        starts[r] = row < all.count() && unit < direction.a.units ? direction.start(all[row], unit) : 0.0f;
      }
#pragma unroll
      for (int r = 0; r < kHere; ++r) {
        float* const state = states + kStates + r * 128 * kChunks + unit;
        state[0] = state[kState] = starts[r];
      }
    }
  }
  // How many rows take part at time t.
  __device__ int active(const Rows& all, int t) const {
    int count = 0;
#pragma unroll
    for (int row = kFirst * kPerGroup; row < kFirst * kPerGroup + kHere; ++row)
      count += row < all.count() && all[row].length > t;
    return count;
  }
  template <class Visit>
  __device__ void each(const Visit& visit) {
    visit(*this);
    others_.each(visit);
  }

 private:
  WarpGroups<Direction, kChunks, kRows - kHere, kPerGroup, kFirst + 1> others_;
};

template <class Direction, int kChunks, int kPerGroup, int kFirst>
class WarpGroups<Direction, kChunks, 0, kPerGroup, kFirst> {
 public:
  __device__ WarpGroups(const Direction&, const Lane&, const Rows&, int) {}
  template <class Visit>
  __device__ void each(const Visit&) {}
};

// Gives a block's outputs of up to kRows rows to all other blocks. A warp takes every so many of them, and its lanes four
// outputs each.
template <int kRows, int kUnits>
class BlockGift {
 public:
  // `shared` is where shared memory begins; the outputs are from `first` on.
  __device__ BlockGift(const Cluster& cluster, const Lane& lane, float* shared, int first, int outputs)
      : cluster_(cluster), shared_(shared) {
    const int quads = outputs / 4;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int mine = lane.index + 32 * i;
      exists_[i] = mine < kRows * quads;
      place_[i] = exists_[i] ? mine / quads * kUnits + first + mine % quads * 4 : 0;
    }
  }
  // Of kCount rows; `state` is numbers into shared memory, the barrier bytes.
  template <int kCount>
  __device__ void give(bool is_wanted, int state, int barrier) const {
    const int blocks = cluster_.blocks(), warps = static_cast<int>(blockDim.x) / 32;
    float values[kTurns][4];
    bool gives[kTurns];
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      gives[i] = exists_[i] && place_[i] < kCount * kUnits;
      const float4 x = *reinterpret_cast<const float4*>(shared_ + state + (gives[i] ? place_[i] : 0));
      values[i][0] = x.x, values[i][1] = x.y, values[i][2] = x.z, values[i][3] = x.w;
    }
    for (int other = static_cast<int>(threadIdx.x) / 32 + 1; other < blocks; other += warps) {
      const int sum = cluster_.rank() + other;
      const Remote to = remote(sum < blocks ? sum : sum - blocks, shared_);
#pragma unroll
      for (int i = 0; i < kTurns; ++i)
        transaction_store(is_wanted && gives[i], to + 4 * (state + place_[i]), values[i], to + barrier);
    }
  }

 private:
  static constexpr int kTurns = (kRows * kMostWarpOutputs / 4 + 31) / 32;
  const Cluster& cluster_;
  float* const shared_;
  bool exists_[kTurns];
  int place_[kTurns];
};

template <class Args>
__device__ void clear_past_end(const Args& a, const Rows& rows, float* out, int first, int units) {
  const Deal deal(units < 0 ? 0 : units);
  for (int i = 0; i < rows.count(); ++i) {
    const int length = rows[i].length;
    float* const end = out + (int64_t{rows[i].index} * a.ragged.steps + length) * a.units + first;
    for_each(deal, a.ragged.steps - length, units, [&](int t, int unit) { end[int64_t{t} * a.units + unit] = 0.0f; });
  }
}

template <class Direction, int kChunks, int kRows, int kPerGroup, bool kGathered, class Args>
__device__ void scan_by_warps(const Args& a, float* shared) {
  constexpr int kGroups = (kRows + kPerGroup - 1) / kPerGroup, kBarriers = 16 * kRows, kStates = kBarriers + 16 * kGroups;
  const Cluster cluster;
  const Direction direction{a};
  int thread = static_cast<int>(threadIdx.x);
  settle(thread);
  const Lane lane(thread);
  const Rows rows(a.ragged, cluster, reinterpret_cast<Row*>(shared));
  const int first = cluster.rank() * a.tiling.outputs, unit = first + thread / 32 * 4;
  const WarpWeights<kChunks> weights(lane, [&](int output, int input) {
    return unit + output < a.units && input < a.units ? direction.weight(unit + output, input) : 0.0f;
  });
  const Recipient recipient(cluster, lane, shared);
  const BlockGift<kPerGroup, 128 * kChunks> gift(cluster, lane, shared, first, a.tiling.outputs);
  float* const states = shared + kStates / 4;
  WarpGroups<Direction, kChunks, kRows, kPerGroup> groups(direction, lane, rows, unit);
  groups.each([&](const auto& group) { group.fill(direction, rows, states); });

  int exchanged[kGroups] = {};  // steps: all but the last, whose state no block reads
  groups.each([&](const auto& group) { exchanged[group.kIndex] = group.steps > 0 ? group.steps - 1 : 0; });
  const int givers = cluster.blocks() - (kGathered ? 1 : 0);
  const auto bytes = [&](int rows_given) { return 4 * rows_given * a.tiling.outputs * givers; };
  const auto time = [&](const auto& group, int step) {
    return direction.first_time(group.longest) + Direction::kTowards * step;
  };
  groups.each([&](auto& group) { group.rows.fetch(time(group, 0)); });
  Exchange exchange(cluster, cluster.blocks(), reinterpret_cast<uint64_t*>(shared + kBarriers / 4), a.hang);
  exchange.start(kGroups, [&](int group, int step) {
    const int left = kRows - group * kPerGroup;
    return step < exchanged[group] ? bytes(left < kPerGroup ? left : kPerGroup) : 0;
  });

  const auto take_step = [&](auto& group, int step, int turn) {
    if (step >= group.steps) return;
    const int t = time(group, step), state = kStates / 4 + group.kStates + turn * group.kState;
    const int barrier = kBarriers + 16 * group.kIndex + 8 * turn;
    group.rows.begin(recipient, kStates / 4 + group.kStates + (turn ^ 1) * group.kState, state + unit, barrier);
    if (step > 0)
      exchange.wait(group.kIndex, step - 1, [&] { return group.active(rows, t - Direction::kTowards); });
    // Not before: a wait ends when the thread's loads from device memory have come (its fence is a NOP for which all
    // scoreboards have to be clear).
    group.rows.fetch(t + Direction::kTowards);
    group.rows.multiply(weights, shared);
    group.rows.add_up();
    if (a.tanh) group.rows.template advance<true>(t);
    else group.rows.template advance<false>(t);
    if (step + 1 < group.steps) {
      if constexpr (kGathered) {
        group.rows.put(shared + state + unit);
        __syncthreads();
        gift.template give<group.kCount>(!exchange.is_lost(), state, barrier);
      } else {
        group.rows.give(!exchange.is_lost(), recipient);
      }
    }
    group.rows.keep(t);
    if (thread == 0 && step > 0 && step + 2 < group.steps)
      exchange.expect(group.kIndex, step + 1, bytes(group.kCount));
  };
  // Groups take turns, so that what one gives is on its way while another computes. The first has the longest row.
  // Two steps in a turn of the loop would outgrow the instruction cache that is next to the scheduler.
#pragma unroll 1
  for (int step = 0; step < groups.steps; ++step)
    groups.each([&](auto& group) { take_step(group, step, step & 1); });
  // Last, for a cluster of short rows has the time.
  const int own_units = a.units - first < a.tiling.outputs ? a.units - first : a.tiling.outputs;
  clear_past_end(a, rows, direction.out(), first, own_units);
  exchange.finish(kGroups, [&](int group) { return exchanged[group]; });
}

// `kRows` of a cluster, kPerGroup of which take their steps together; kGathered where the block gives, and not each warp.
template <int kChunks, int kRows, int kPerGroup, bool kGathered>
__global__ __launch_bounds__(32 * most_warps(kChunks), 1) void rnn_scan_warps_fwd_kernel(
    const __grid_constant__ RnnScan a) {
#ifdef DMM_HAS_CLUSTERS
  DMM_SHARED(float, shared);
  scan_by_warps<WarpForward, kChunks, kRows, kPerGroup, kGathered>(a, shared);
#endif
}

template <int kChunks, int kRows, int kPerGroup, bool kGathered>
__global__ __launch_bounds__(32 * most_warps(kChunks), 1) void rnn_scan_warps_bwd_kernel(
    const __grid_constant__ RnnScanBackward a) {
#ifdef DMM_HAS_CLUSTERS
  DMM_SHARED(float, shared);
  scan_by_warps<WarpBackward, kChunks, kRows, kPerGroup, kGathered>(a, shared);
#endif
}

}  // namespace dmm::cuda
