// rnn_scan with outputs by warps (warp_product.cuh). In a step of a group of rows the block waits for the state; each warp
// multiplies it by its slice of the weights, writes the next state of its outputs to the block's own state, and sends it to
// the other blocks, through the shared memory of a cluster (warps_by_cluster.cuh) or through device memory
// (warps_by_words.cuh). A group has two alternating states.
#pragma once

#include "matrix.cuh"
#include "ragged.cuh"
#include "rnn_scan.h"
#include "scan_kernels.h"
#include "warp_product.cuh"
#include "warps_by_cluster.cuh"
#include "warps_by_words.cuh"

namespace dmm::cuda {

// The differences between a scan and its gradient; a group begins with the end, or the start, of its longest row.
struct WarpForward {  // from the end back to 0
  static constexpr int kOperands = 1, kTowards = -1;
  const RnnScan& a;

  __device__ static int steps(int longest) { return longest; }
  __device__ static int time(int longest, int step) { return longest - 1 - step; }
  // Of an output and the first input, and how far it is to those of the next.
  __device__ const float* weights(int output) const { return a.w_hh.place(output, 0); }
  __device__ int64_t next_output() const { return a.w_hh.row; }
  __device__ int64_t next_input() const { return a.w_hh.column; }
  __device__ float start(const Row& row, int unit) const { return *a.h_0.at(row.particle, row.sequence, 0, unit); }
  __device__ const Sequences<const float>& operand(int) const { return a.x_proj; }
  __device__ float* out() const { return a.h; }
  // docs-begin: next state
  // The state that follows `before`. A row that has not begun keeps its start.
  template <bool kTanh>
  __device__ static float next(float sum, const float (&given)[1], bool is_active, float before) {
    const float x = sum + given[0], h = kTanh ? tanhf(x) : x < 0.0f ? 0.0f : x;  // unlike a maximum, it keeps NaN
    return is_active ? h : before;
  }
  // docs-end: next state
  __device__ void finish(const Row&, int, int, float) const {}
};

struct WarpBackward {  // from 0 to the end, and there once more for dh_0
  static constexpr int kOperands = 2, kTowards = 1;
  const RnnScanBackward& a;

  __device__ static int steps(int longest) { return longest + 1; }
  __device__ static int time(int, int step) { return step; }
  __device__ const float* weights(int output) const { return a.w_hh.place(0, output); }
  __device__ int64_t next_output() const { return a.w_hh.column; }
  __device__ int64_t next_input() const { return a.w_hh.row; }
  __device__ float start(const Row&, int) const { return 0.0f; }
  __device__ const Sequences<const float>& operand(int i) const { return i == 0 ? a.dh : a.h; }
  __device__ float* out() const { return a.dx_proj; }
  // docs-begin: next delta
  template <bool kTanh>
  __device__ static float next(float sum, const float (&given)[2], bool is_active, float) {
    const float dh = sum + given[0], h = given[1];
    return !is_active ? 0.0f : kTanh ? dh * (1.0f - h * h) : h > 0.0f ? dh : 0.0f;
  }
  // docs-end: next delta
  // The sum that a row has when it has ended.
  __device__ void finish(const Row& row, int t, int unit, float sum) const {
    if (t == row.length) a.dh_0[int64_t{row.index} * a.units + unit] = sum;
  }
};

template <class Direction, class Exchange, class K, class Args>
class WarpScan {
  static constexpr int kRows = K::kRows, kOutputs = K::kOutputs;
  static constexpr int kUnits = K::tile().units(), kState = K::tile().state(), kOwn = K::tile().block_outputs();
  static constexpr int kOperands = Direction::kOperands, kSums = kRows * kOutputs;

 public:
  __device__ WarpScan(const Args& a, float* shared)
      : a_(a),
        direction_{a},
        blocks_(Exchange::blocks_of(a)),
        rows_(a.ragged, blocks_, reinterpret_cast<Row*>(shared)),
        layout_(K::tile(), a.ragged.rows_per_cluster, kOperands + 1),
        shared_(reinterpret_cast<unsigned char*>(shared)),
        from_(reinterpret_cast<const float**>(shared_ + layout_.places) + threadIdx.x),
        first_(blocks_.rank() * kOwn),
        sum_(summed<kSums>(lane())),
        row_(sum_.number / kOutputs),
        unit_(first_ + warp() * kOutputs + sum_.number % kOutputs),
        owns_(sum_.is_first && unit_ < a.units) {
    settle(row_), settle(unit_);
  }

  __device__ void run() {
    const int unit = first_ + warp() * kOutputs;
    const WarpWeights<K::kChunks, K::kKept, kOutputs> weights(at<float>(layout_.weights), direction_.weights(unit),
                                                              direction_.next_output(), direction_.next_input(),
                                                              a_.units - unit, a_.units);
    for (int group = 0; group < rows_.groups(); ++group) begin(group);
    Exchange exchange(a_, blocks_, rows_, layout_, shared_);
    exchange.start([this](int group) { return exchanged(group); });
    if (a_.tanh) take_steps<true>(weights, exchange);
    else take_steps<false>(weights, exchange);
    clear_past_end();  // last, for a cluster of short rows has the time
    exchange.finish([this](int group) { return exchanged(group); });
  }

 private:
  // What a thread has to know of a step of a group before it begins.
  struct Turn {
    int group, step, steps, time;
    int length;  // of the row whose unit the thread owns; -1 where it owns none
    const float* from[kOperands];
    float* to;

    __device__ bool is_last() const { return step + 1 == steps; }
    __device__ bool is_active() const { return time < length; }
  };

  template <bool kTanh, class Weights>
  __device__ void take_steps(const Weights& weights, Exchange& exchange) {
    int active = drop_ended(rows_.groups(), 0);
    if (active == 0) return;
    exchange.find_peers();
    Turn turn = turn_of(0, 0);
    float given[kOperands], fetched[kOperands];
    fetch(turn, fetched);
#pragma unroll 1
    // docs-begin: step
    while (active > 0) {
      const int parity = turn.step & 1;
      const float* const state = states() + (2 * turn.group + (parity ^ 1)) * kState;
      float* const own_state = states() + (2 * turn.group + parity) * kState + row_ * kUnits + unit_;
      const float before = owns_ ? state[row_ * kUnits + unit_] : 0.0f;
#pragma unroll
      for (int i = 0; i < kOperands; ++i) given[i] = fetched[i];
      const Turn next = following(turn, active);
      if (turn.step > 0 && blocks_.blocks() > 1)
        exchange.wait(turn.group, turn.step - 1, [&] { return active_rows(turn.group, turn.step - 1); });
      // Not before: a wait ends when the thread's loads from device memory have come (its fence is a NOP for which all
      // scoreboards have to be clear).
      if (active > 0) fetch(next, fetched);
      float sums[kSums] = {};
      weights.template multiply<kRows>(state, sums);
      const float sum = add_lanes<kSums>(sums, lane());
      const float value = Direction::template next<kTanh>(sum, given, turn.is_active(), before);
      if (!turn.is_last()) {
        if (owns_) *own_state = value;
        exchange.give(turn, own_state - (row_ * kUnits + unit_), value);
      }
      if (turn.is_active()) store_global(turn.to, value);
      else if (turn.length >= 0) direction_.finish(rows_[turn.group * kRows + row_], turn.time, unit_, sum);
      turn = next;
    }
    // docs-end: step
  }
  // Of so many groups, those that have a step left: the first ones, for the first has the longest row.
  __device__ int drop_ended(int groups, int step) const {
    while (groups > 0 && Direction::steps(rows_.longest(groups - 1)) <= step) --groups;
    return groups;
  }
  // Groups take turns; `active` is how many have a step left, none after the last turn.
  __device__ Turn following(const Turn& turn, int& active) const {
    if constexpr (K::kSeveral) {
      const bool is_round = turn.group + 1 == active;
      if (is_round && turn.is_last()) active = drop_ended(active, turn.step + 1);
      return active > 0 ? turn_of(is_round ? 0 : turn.group + 1, turn.step + is_round) : turn;
    } else {
      if (turn.is_last()) active = 0;
      Turn next = turn;
      ++next.step;
      next.time += Direction::kTowards;
      next.to += Direction::kTowards * a_.out_step;
#pragma unroll
      for (int i = 0; i < kOperands; ++i) next.from[i] += Direction::kTowards * direction_.operand(i).step;
      return next;
    }
  }

  // All threads fill both states of a group, and each writes down where it reads and writes at time 0.
  __device__ void begin(int group) {
    float* const mine = states() + 2 * group * kState;
    for (int i = static_cast<int>(threadIdx.x); i < kState; i += kWarpThreads) {
      const int row = group * kRows + i / kUnits, unit = i % kUnits;
      mine[i] = mine[kState + i] = row < rows_.count() && unit < a_.units ? direction_.start(rows_[row], unit) : 0.0f;
    }
    const int row = group * kRows + row_;
    if (!owns_ || row >= rows_.count()) return;
    const Row& own = rows_[row];
    const float** const places = from_ + group * (kOperands + 1) * kWarpThreads;
    const int strides = strides_to(a_, 0, own.length);
    for (int i = 0; i < kOperands; ++i)
      places[i * kWarpThreads] = direction_.operand(i).at(own.particle, own.sequence, strides, unit_);
    float* const out = direction_.out() + int64_t{own.index} * a_.ragged.steps * a_.units + unit_;
    places[kOperands * kWarpThreads] = out + int64_t{strides} * a_.out_step;
  }

  __device__ Turn turn_of(int group, int step) const {
    const int row = group * kRows + row_, longest = rows_.longest(group);
    Turn turn{group, step, Direction::steps(longest), Direction::time(longest, step), -1, {}, direction_.out()};
    // Pointers move in threads that own nothing, too, and are not followed there.
#pragma unroll
    for (int i = 0; i < kOperands; ++i) turn.from[i] = direction_.operand(i).data;
    if (!owns_ || row >= rows_.count()) return turn;
    turn.length = rows_[row].length;
    const float* const* const places = from_ + group * (kOperands + 1) * kWarpThreads;
#pragma unroll
    for (int i = 0; i < kOperands; ++i) turn.from[i] = places[i * kWarpThreads] + turn.time * direction_.operand(i).step;
    turn.to = const_cast<float*>(places[kOperands * kWarpThreads]) + int64_t{turn.time} * a_.out_step;
    return turn;
  }
  __device__ void fetch(const Turn& turn, float (&fetched)[kOperands]) const {
#pragma unroll
    for (int i = 0; i < kOperands; ++i) fetched[i] = turn.is_active() ? load_global(turn.from[i]) : 0.0f;
  }

  // Steps of a group that are exchanged: all but the last, whose state no block reads.
  __device__ int exchanged(int group) const {
    const int steps = Direction::steps(rows_.longest(group));
    return steps > 0 ? steps - 1 : 0;
  }
  // How many rows of a group take part in a step.
  __device__ int active_rows(int group, int step) const {
    return rows_.more_than(group, Direction::time(rows_.longest(group), step));
  }

  __device__ void clear_past_end() const {
    const int units = a_.units - first_ < kOwn ? a_.units - first_ : kOwn;
    const Deal deal(units < 0 ? 0 : units);
    for (int i = 0; i < rows_.count(); ++i) {
      const int length = rows_[i].length;
      float* const end = direction_.out() + (int64_t{rows_[i].index} * a_.ragged.steps + length) * a_.units + first_;
      for_each(deal, a_.ragged.steps - length, units, [&](int t, int unit) { end[int64_t{t} * a_.units + unit] = 0.0f; });
    }
  }

  template <class T>
  __device__ T* at(int bytes) const {
    return reinterpret_cast<T*>(shared_ + bytes);
  }
  __device__ float* states() const { return at<float>(layout_.states); }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }

  const Args& a_;
  const Direction direction_;
  const typename Exchange::Blocks blocks_;
  const ClusterRows rows_;
  const WarpLayout layout_;
  unsigned char* const shared_;
  const float** const from_;
  const int first_;  // unit of the block
  // After the shuffles a lane has one sum, of a row of the group and a unit; of those that have the same the first owns it.
  const Summed sum_;
  int row_, unit_;
  const bool owns_;
};

template <int kChunks, int kOutputs, int kKept, int kRows, bool kSeveral>
__global__ __launch_bounds__(kWarpThreads, 1) void rnn_scan_warps_fwd_kernel(const __grid_constant__ RnnScan a) {
  using K = WarpKernel<kChunks, kOutputs, kKept, kRows, kSeveral>;
  if constexpr (kHasClusters || kChunks == 1) {  // a block alone may have all units
    DMM_SHARED(float, shared);
    WarpScan<WarpForward, WarpsByCluster<K, RnnScan>, K, RnnScan>(a, shared).run();
  }
}

template <int kChunks, int kOutputs, int kKept, int kRows, bool kSeveral>
__global__ __launch_bounds__(kWarpThreads, 1) void rnn_scan_warps_bwd_kernel(const __grid_constant__ RnnScanBackward a) {
  using K = WarpKernel<kChunks, kOutputs, kKept, kRows, kSeveral>;
  if constexpr (kHasClusters || kChunks == 1) {
    DMM_SHARED(float, shared);
    WarpScan<WarpBackward, WarpsByCluster<K, RnnScanBackward>, K, RnnScanBackward>(a, shared).run();
  }
}

template <int kChunks, int kOutputs, int kKept, int kRows, bool kSeveral>
__global__ __launch_bounds__(kWarpThreads, 1) void rnn_scan_words_fwd_kernel(const __grid_constant__ RnnScan a) {
  using K = WarpKernel<kChunks, kOutputs, kKept, kRows, kSeveral>;
  DMM_SHARED(float, shared);
  WarpScan<WarpForward, WarpsByWords<K, RnnScan>, K, RnnScan>(a, shared).run();
}

template <int kChunks, int kOutputs, int kKept, int kRows, bool kSeveral>
__global__ __launch_bounds__(kWarpThreads, 1) void rnn_scan_words_bwd_kernel(const __grid_constant__ RnnScanBackward a) {
  using K = WarpKernel<kChunks, kOutputs, kKept, kRows, kSeveral>;
  DMM_SHARED(float, shared);
  WarpScan<WarpBackward, WarpsByWords<K, RnnScanBackward>, K, RnnScanBackward>(a, shared).run();
}

}  // namespace dmm::cuda
