// rnn_scan for few rows a cluster, whose outputs belong to warps (warp_product.cuh). In a step a warp waits for the
// state, multiplies it and gives its outputs' next state to all blocks, and there is no block barrier: the warps of a
// block may be up to two steps apart.
//
// The argument of exchange.cuh for two barriers, and two states, that take turns holds for warps as it does for blocks.
// Every warp of every block gives all rows of a group at every step but the last, also rows that have not begun or
// have ended, and also where its outputs are no units. So a phase ends when all warps have given, each after it had read
// the state before: that state may be overwritten, and the barrier of the step before be told what to expect next.
#pragma once

#include "exchange.cuh"
#include "matrix.cuh"
#include "rnn_warp_rows.cuh"

namespace dmm::cuda {

// The rows of a group in ones and twos; its states lie one after another.
template <class Direction, int kChunks, int kOutputs, int kRows>
class WarpGroup {
  using Head = WarpRows<Direction, kChunks, kOutputs, kRows < 2 ? kRows : 2>;
  using Rest = WarpGroup<Direction, kChunks, kOutputs, kRows - (kRows < 2 ? kRows : 2)>;

 public:
  static constexpr int kBytes = Head::kBytes + Rest::kBytes;

  __device__ WarpGroup(const Direction& direction, const Lane& lane, const Rows& rows, int first, int longest, int unit,
                       const Recipients& recipients, int offset)
      : head_(direction, lane, rows, first, longest, unit, recipients, offset),
        rest_(direction, lane, rows, first + 2, longest, unit, recipients, offset + Head::kBytes) {}

  __device__ void fill(const Rows& rows, int first, float* states) const {
    head_.fill(rows, first, states);
    rest_.fill(rows, first + 2, states + Head::kBytes / 4);
  }
  __device__ void fetch(int t) { head_.fetch(t), rest_.fetch(t); }
  __device__ void begin() { head_.begin(), rest_.begin(); }
  template <class Weights>
  __device__ void multiply(const Weights& weights, const float* states, int turn) {
    head_.multiply(weights, states, turn);
    rest_.multiply(weights, states + Head::kBytes / 4, turn);
  }
  __device__ void add_up() { head_.add_up(), rest_.add_up(); }
  template <bool kTanh>
  __device__ void advance(int t) {
    head_.template advance<kTanh>(t), rest_.template advance<kTanh>(t);
  }
  __device__ void give(int turn, const Recipients& recipients, int barrier) const {
    head_.give(turn, recipients, barrier), rest_.give(turn, recipients, barrier);
  }
  __device__ void keep(int t) { head_.keep(t), rest_.keep(t); }
  __device__ int active(int t) const { return head_.active(t) + rest_.active(t); }

 private:
  Head head_;
  Rest rest_;
};

template <class Direction, int kChunks, int kOutputs>
class WarpGroup<Direction, kChunks, kOutputs, 0> {
 public:
  static constexpr int kBytes = 0;

  __device__ WarpGroup(const Direction&, const Lane&, const Rows&, int, int, int, const Recipients&, int) {}
  __device__ void fill(const Rows&, int, float*) const {}
  __device__ void fetch(int) {}
  __device__ void begin() {}
  template <class Weights>
  __device__ void multiply(const Weights&, const float*, int) {}
  __device__ void add_up() {}
  template <bool kTanh>
  __device__ void advance(int) {}
  __device__ void give(int, const Recipients&, int) const {}
  __device__ void keep(int) {}
  __device__ int active(int) const { return 0; }
};

// All groups from number kFirst on; `visit(group)` of each.
template <class Direction, int kChunks, int kOutputs, int kRows, int kPerGroup, int kFirst = 0>
class WarpGroups {
  static constexpr int kHere = kRows < kPerGroup ? kRows : kPerGroup;

 public:
  static constexpr int kIndex = kFirst, kCount = kHere;
  static constexpr int kStates = kFirst * WarpGroup<Direction, kChunks, kOutputs, kPerGroup>::kBytes;
  const int longest, steps;
  WarpGroup<Direction, kChunks, kOutputs, kHere> rows;

  // The states begin at `offset` bytes in shared memory.
  __device__ WarpGroups(const Direction& direction, const Lane& lane, const Rows& all, int unit,
                        const Recipients& recipients, int offset)
      : longest(kFirst * kPerGroup < all.count() ? all.longest(kFirst) : 0),
        steps(direction.steps(longest)),
        rows(direction, lane, all, kFirst * kPerGroup, longest, unit, recipients, offset + kStates),
        others_(direction, lane, all, unit, recipients, offset) {}

  template <class Visit>
  __device__ void each(const Visit& visit) {
    visit(*this);
    others_.each(visit);
  }

 private:
  WarpGroups<Direction, kChunks, kOutputs, kRows - kHere, kPerGroup, kFirst + 1> others_;
};

template <class Direction, int kChunks, int kOutputs, int kPerGroup, int kFirst>
class WarpGroups<Direction, kChunks, kOutputs, 0, kPerGroup, kFirst> {
 public:
  __device__ WarpGroups(const Direction&, const Lane&, const Rows&, int, const Recipients&, int) {}
  template <class Visit>
  __device__ void each(const Visit&) {}
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

template <class Direction, int kChunks, int kOutputs, int kRows, int kPerGroup, class Args>
__device__ void scan_by_warps(const Args& a, float* shared) {
  constexpr int kGroups = (kRows + kPerGroup - 1) / kPerGroup, kBarriers = 16 * kRows, kStates = kBarriers + 16 * kGroups;
  const Cluster cluster;
  const Direction direction{a};
  const Lane lane;
  const Rows rows(a.ragged, cluster, reinterpret_cast<Row*>(shared));
  const int first = cluster.rank() * a.tiling.outputs, unit = first + static_cast<int>(threadIdx.x) / 32 * kOutputs;
  const WarpWeights<kChunks, kOutputs> weights(lane, [&](int output, int input) {
    return unit + output < a.units && input < a.units ? direction.weight(unit + output, input) : 0.0f;
  });
  const Recipients recipients(cluster, lane, shared);
  float* const states = shared + kStates / 4;
  WarpGroups<Direction, kChunks, kOutputs, kRows, kPerGroup> groups(direction, lane, rows, unit, recipients, kStates);
  groups.each([&](auto& group) { group.rows.fill(rows, group.kIndex * kPerGroup, states + group.kStates / 4); });
  const int own_units = a.units - first < a.tiling.outputs ? a.units - first : a.tiling.outputs;
  clear_past_end(a, rows, direction.out(), first, own_units);

  int exchanged[kGroups] = {};  // steps: all but the last, whose state no block reads
  groups.each([&](const auto& group) { exchanged[group.kIndex] = group.steps > 0 ? group.steps - 1 : 0; });
  const auto bytes = [&](int rows_given) { return 4 * rows_given * a.tiling.outputs * cluster.blocks(); };
  Exchange exchange(cluster, cluster.blocks(), reinterpret_cast<uint64_t*>(shared + kBarriers / 4), a.hang);
  exchange.start(kGroups, [&](int group, int step) {
    const int left = kRows - group * kPerGroup;
    return step < exchanged[group] ? bytes(left < kPerGroup ? left : kPerGroup) : 0;
  });

  const auto time = [&](const auto& group, int step) {
    return direction.first_time(group.longest) + Direction::kTowards * step;
  };
  groups.each([&](auto& group) { group.rows.fetch(time(group, 0)); });
  const auto take_step = [&](auto& group, int step, int turn) {
    if (step >= group.steps) return;
    const int t = time(group, step);
    group.rows.begin();
    group.rows.fetch(t + Direction::kTowards);
    if (step > 0) exchange.wait(group.kIndex, step - 1, [&] { return group.rows.active(t - Direction::kTowards); });
    group.rows.multiply(weights, states + group.kStates / 4, turn ^ 1);
    group.rows.add_up();
    if (a.tanh) group.rows.template advance<true>(t);
    else group.rows.template advance<false>(t);
    if (step + 1 < group.steps && !exchange.is_lost())
      group.rows.give(turn, recipients, kBarriers + 16 * group.kIndex + 8 * turn);
    group.rows.keep(t);
    if (threadIdx.x == 0 && step > 0 && step + 2 < group.steps)
      exchange.expect(group.kIndex, step + 1, bytes(group.kCount));
  };
  // Groups take turns, so that what one gives is on its way while another computes. The first has the longest row.
  for (int step = 0; step < groups.steps; step += 2) {
    groups.each([&](auto& group) { take_step(group, step, 0); });
    groups.each([&](auto& group) { take_step(group, step + 1, 1); });
  }
  exchange.finish(kGroups, [&](int group) { return exchanged[group]; });
}

// `kOutputs` of each warp; `kRows` of a cluster, kPerGroup of which take their steps together.
template <int kChunks, int kOutputs, int kRows, int kPerGroup>
__global__ __launch_bounds__(32 * most_warps(kChunks, kOutputs), 1) void rnn_scan_warps_fwd_kernel(
    const __grid_constant__ RnnScan a) {
#ifdef DMM_HAS_CLUSTERS
  DMM_SHARED(float, shared);
  scan_by_warps<WarpForward, kChunks, kOutputs, kRows, kPerGroup>(a, shared);
#endif
}

template <int kChunks, int kOutputs, int kRows, int kPerGroup>
__global__ __launch_bounds__(32 * most_warps(kChunks, kOutputs), 1) void rnn_scan_warps_bwd_kernel(
    const __grid_constant__ RnnScanBackward a) {
#ifdef DMM_HAS_CLUSTERS
  DMM_SHARED(float, shared);
  scan_by_warps<WarpBackward, kChunks, kOutputs, kRows, kPerGroup>(a, shared);
#endif
}

}  // namespace dmm::cuda
