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
#include "ragged.cuh"
#include "rnn_scan.h"
#include "warp_product.cuh"

namespace dmm::cuda {

// What the two directions do differently; a group's time begins with the end, or the start, of its longest row.
struct WarpForward {  // from the end back to 0
  static constexpr int kOperands = 1;
  static constexpr int kTowards = -1;
  const RnnScan& a;

  __device__ int steps(int longest) const { return longest; }
  __device__ int first_time(int longest) const { return longest - 1; }
  __device__ float weight(int output, int input) const { return a.w_hh.at(output, input); }
  __device__ float start(const Row& row, int unit) const { return *a.h_0.at(row.particle, row.sequence, 0, unit); }
  __device__ const Sequences<const float>& operand(int) const { return a.x_proj; }
  __device__ float* out() const { return a.h; }
  // Where the sum goes that a row has when it has ended.
  __device__ float* last() const { return nullptr; }
  template <bool kTanh>
  __device__ static float next(float sum, float, bool is_active, float start) {
    const float h = kTanh ? tanhf(sum) : sum < 0.0f ? 0.0f : sum;  // unlike a maximum, it keeps NaN
    return is_active ? h : start;
  }
};

struct WarpBackward {  // from 0 to the end, and there once more for dh_0
  static constexpr int kOperands = 2;
  static constexpr int kTowards = 1;
  const RnnScanBackward& a;

  __device__ int steps(int longest) const { return longest + 1; }
  __device__ int first_time(int) const { return 0; }
  __device__ float weight(int output, int input) const { return a.w_hh.at(input, output); }
  __device__ float start(const Row&, int) const { return 0.0f; }
  __device__ const Sequences<const float>& operand(int i) const { return i == 0 ? a.dh : a.h; }
  __device__ float* out() const { return a.dx_proj; }
  __device__ float* last() const { return a.dh_0; }
  // What a row's state is after its end, no other row sees and nobody reads.
  template <bool kTanh>
  __device__ static float next(float dh, float h, bool, float) {
    return kTanh ? dh * (1.0f - h * h) : h > 0.0f ? dh : 0.0f;
  }
};

// Which blocks a lane gives to, and where their shared memory is: two of its output's, one of the fifth output's.
struct Recipients {
  static constexpr int kCount = 3, kFifth = 2;
  Remote at[kCount];
  bool exists[kCount];

  __device__ Recipients(const Cluster& cluster, const Lane& lane, float* shared) {
    const int blocks = cluster.blocks();
    const int numbers[kCount] = {lane.among, lane.among + 8, lane.index & 15};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      exists[i] = numbers[i] < blocks;
      // Each begins with itself, so that no block is the first of all.
      at[i] = remote((cluster.rank() + numbers[i]) % blocks, shared);
    }
  }
};

// A row or two of a group, as a lane sees them: it holds the sums of its output and, of five, that of one row of the
// fifth. Of these one lane owns a unit of a row: it has what comes from device memory, and writes what goes there.
template <class Direction, int kChunks, int kOutputs, int kRows>
class WarpRows {
 public:
  static constexpr bool kFive = kOutputs > 4;
  static constexpr int kOperands = Direction::kOperands;
  using State = WarpState<kChunks, kRows>;
  static constexpr int kBytes = 2 * 4 * State::kNumbers;  // of the two states that take turns

  // `state`, of two, is at `offset` bytes in shared memory. Of the cluster's rows from `first` on; `unit` is the warp's first.
  __device__ WarpRows(const Direction& direction, const Lane& lane, const Rows& rows, int first, int longest, int unit,
                      const Recipients& recipients, int offset)
      : direction_(direction), lane_(lane) {
    const auto& a = direction.a;
    const bool owns_fifth = kFive && (lane.index == kOwner || (kRows > 1 && lane.index == kOwnerOfSecond));
    const int mine = owns_fifth ? lane.half : lane.among, own_unit = unit + (owns_fifth ? 4 : lane.output);
    owns_first_ = lane.among == 0;
    owns_second_ = kRows > 1 && lane.among == 1;
    owns_fifth_ = owns_fifth;
    const int units[2] = {unit + lane.output, unit + 4};
    for (int r = 0; r < kRows; ++r) {
      const int row = first + r;
      lengths_[r] = row < rows.count() ? rows[row].length : 0;
      starts_[r] = row < rows.count() && units[0] < a.units ? direction.start(rows[row], units[0]) : 0.0f;
    }
    const int of_fifth = kRows > 1 ? lane.half : 0;
    if (kFive) {
      const int row = first + of_fifth;
      fifth_length_ = row < rows.count() ? rows[row].length : 0;
      fifth_start_ = row < rows.count() && units[1] < a.units ? direction.start(rows[row], units[1]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < Recipients::kCount; ++i) {
      const bool is_fifth = i == Recipients::kFifth;
      const int u = units[is_fifth];
      const int place = State::place(u < a.units ? u : State::kUnits, is_fifth ? of_fifth : 0);
      to_[i] = recipients.at[i] + (offset + 4 * place);
    }
    const bool owns = (owns_first_ || owns_second_ || owns_fifth_) && own_unit < a.units && first + mine < rows.count();
    // Pointers move in lanes that own nothing, too, and are not followed there.
    own_length_ = -1;
    for (int i = 0; i < kOperands; ++i) from_[i] = direction.operand(i).data;
    out_ = direction.out();
    if (!owns) return;
    const Row& row = rows[first + mine];
    own_length_ = row.length;
    const int t = direction.first_time(longest);
    for (int i = 0; i < kOperands; ++i) from_[i] = direction.operand(i).at(row.particle, row.sequence, t, own_unit);
    out_ = direction.out() + (int64_t{row.index} * a.ragged.steps + t) * a.units + own_unit;
    if (direction.last()) last_ = direction.last() + int64_t{row.index} * a.units + own_unit;
  }

  // All threads of the block fill both states.
  __device__ void fill(const Rows& rows, int first, float* states) const {
    for (int i = static_cast<int>(threadIdx.x); i < kRows * State::kUnits; i += static_cast<int>(blockDim.x)) {
      const int r = i / State::kUnits, unit = i % State::kUnits, row = first + r;
      const bool exists = row < rows.count() && unit < direction_.a.units;
      float* const at = states + State::place(unit, r);
      at[0] = at[State::kNumbers] = exists ? direction_.start(rows[row], unit) : 0.0f;
    }
  }

  // What a step at time t needs from device memory, a step ahead.
  __device__ void fetch(int t) {
    const bool is_active = t >= 0 && t < own_length_;
#pragma unroll
    for (int i = 0; i < kOperands; ++i) {
      given_[i] = is_active ? *from_[i] : 0.0f;
      from_[i] += Direction::kTowards * direction_.operand(i).step;
    }
  }
  // What can be done before the state is there.
  __device__ void begin() {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) sums_[r][o] = 0.0f;
    sums_[0][0] = owns_first_ ? given_[0] : 0.0f;
    if (kRows > 1) sums_[kRows - 1][0] = owns_second_ ? given_[0] : 0.0f;
    if constexpr (kFive) {
      sums_[0][4] = owns_fifth_ && !lane_.half ? given_[0] : 0.0f;
      if (kRows > 1) sums_[kRows - 1][4] = owns_fifth_ && lane_.half ? given_[0] : 0.0f;
    }
    if constexpr (kOperands > 1) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) seconds_[r] = __shfl_sync(kAllLanes, given_[1], (lane_.index & 24) + r);
      if (kFive) fifth_second_ = __shfl_sync(kAllLanes, given_[1], kRows > 1 && lane_.half ? kOwnerOfSecond : kOwner);
    }
  }
  template <class Weights>
  __device__ void multiply(const Weights& weights, const float* states, int turn) {
    weights.multiply(lane_, states + turn * State::kNumbers, sums_);
  }
  __device__ void add_up() {
    add_lanes(sums_);
    if constexpr (kFive) fifth_sum_ = add_lanes_of_fifth(lane_, sums_);
  }
  // The states at time t.
  template <bool kTanh>
  __device__ void advance(int t) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      values_[r] = Direction::template next<kTanh>(sums_[r][0], seconds_[r], t < lengths_[r], starts_[r]);
    if constexpr (kFive)
      fifth_[0] = Direction::template next<kTanh>(fifth_sum_, fifth_second_, t < fifth_length_, fifth_start_);
  }
  // To all blocks; the barrier is so many bytes into shared memory.
  __device__ void give(int turn, const Recipients& recipients, int barrier) const {
    const int buffer = 4 * turn * State::kNumbers;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      transaction_store(recipients.exists[i], to_[i] + buffer, values_, recipients.at[i] + barrier);
    if constexpr (kFive) {
      const int i = Recipients::kFifth;
      transaction_store(recipients.exists[i] && (kRows > 1 || !lane_.half), to_[i] + buffer, fifth_,
                        recipients.at[i] + barrier);
    }
  }
  // To device memory.
  __device__ void keep(int t) {
    if (t < own_length_)
      *out_ = owns_fifth_ ? fifth_[0] : owns_second_ ? values_[kRows - 1] : values_[0];
    else if (direction_.last() && t == own_length_)
      *last_ = owns_fifth_ ? fifth_sum_ : owns_second_ ? sums_[kRows - 1][0] : sums_[0][0];
    out_ += Direction::kTowards * direction_.a.units;
  }
  // How many rows take part at time t.
  __device__ int active(int t) const {
    int count = 0;
    for (int r = 0; r < kRows; ++r) count += t < lengths_[r];
    return count;
  }

 private:
  // The lanes that own the fifth unit of a row.
  static constexpr int kOwner = 4, kOwnerOfSecond = 21;

  const Direction& direction_;
  const Lane& lane_;
  bool owns_first_, owns_second_, owns_fifth_;
  int lengths_[kRows], fifth_length_ = 0, own_length_;
  float starts_[kRows], fifth_start_ = 0.0f;
  Remote to_[Recipients::kCount];
  const float* from_[kOperands];
  float *out_, *last_ = nullptr;
  float given_[kOperands], seconds_[kRows] = {}, fifth_second_ = 0.0f;
  float sums_[kRows][kOutputs], fifth_sum_ = 0.0f, values_[kRows], fifth_[1] = {};
};

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
