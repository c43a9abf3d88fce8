// A lane's part of rnn_scan by warps (rnn_scan_warps.cuh): what it knows of one row or two, forward and backward.
#pragma once

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
  // Outputs that are no units stay zero.
  template <bool kTanh>
  __device__ static float next(float dh, float h, bool is_active, float) {
    return !is_active ? 0.0f : kTanh ? dh * (1.0f - h * h) : h > 0.0f ? dh : 0.0f;
  }
};

// The block that a lane gives to, and where its shared memory is. The lanes of one row or two give to all blocks at once.
struct Recipient {
  bool exists;
  Remote at;

  __device__ Recipient(const Cluster& cluster, const Lane& lane, float* shared) {
    const int number = 4 * lane.output + lane.among;
    exists = number < cluster.blocks();
    // Each begins with itself, so that no block is the first of all.
    at = remote((cluster.rank() + number) % cluster.blocks(), shared);
  }
};

// A row or two of a group, as a lane sees them: it holds the sum of its output and row. Of the lanes that hold the same
// one owns it, a unit of a row: it has what comes from device memory, and writes what goes there.
template <class Direction, int kChunks, int kRows>
class WarpRows {
 public:
  static constexpr int kOperands = Direction::kOperands;
  static constexpr int kUnits = 128 * kChunks;

  // Of the cluster's rows from `first` on; `unit` is the warp's first.
  __device__ WarpRows(const Direction& direction, const Lane& lane, const Rows& rows, int first, int longest, int unit)
      : direction_(direction), lane_(lane) {
    const auto& a = direction.a;
    const int row = first + (kRows > 1 ? lane.row : 0), own_unit = unit + lane.output;
    const bool is_first = lane.among == 0 && (kRows > 1 || lane.row == 0);
    // Pointers move in lanes that own nothing, too, and are not followed there.
    for (int i = 0; i < kOperands; ++i) from_[i] = direction.operand(i).data;
    out_ = direction.out();
    if (!is_first || own_unit >= a.units || row >= rows.count()) return;
    const Row& own = rows[row];
    length_ = own.length;
    start_ = direction.start(own, own_unit);
    const int t = direction.first_time(longest);
    for (int i = 0; i < kOperands; ++i) from_[i] = direction.operand(i).at(own.particle, own.sequence, t, own_unit);
    out_ += (int64_t{own.index} * a.ragged.steps + t) * a.units + own_unit;
    if (direction.last()) last_ = direction.last() + int64_t{own.index} * a.units + own_unit;
  }

  // What a step at time t needs from device memory, a step ahead.
  __device__ void fetch(int t) {
    const bool is_active = t >= 0 && t < length_;
#pragma unroll
    for (int i = 0; i < kOperands; ++i) {
      given_[i] = is_active ? *from_[i] : 0.0f;
      from_[i] += Direction::kTowards * direction_.operand(i).step;
    }
  }
  // What can be done before the state is there: it begins `from` numbers into shared memory, and the next one goes to
  // where the first row has the warp's first unit, `to` numbers into shared memory, with a barrier so many bytes.
  __device__ void begin(const Recipient& recipient, int from, int to, int barrier) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      in_[r] = from + 4 * lane_.index + (kRows > 1 ? r ^ lane_.row : 0) * kUnits;
      settle(in_[r]);
    }
    to_ = recipient.at + 4 * (to + (kRows > 1 ? kUnits * lane_.row : 0));
    barrier_ = recipient.at + barrier;
    settle(to_), settle(barrier_);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int o = 0; o < 4; ++o) sums_[r][o] = 0.0f;
    sums_[0][0] = given_[0];  // zero but in the lane that owns it
    second_ = given_[kOperands - 1];
    // So what is fetched next can come to where they were.
    settle(sums_[0][0]);
    if (kOperands > 1) settle(second_);
  }
  template <class Weights>
  __device__ void multiply(const Weights& weights, const float* shared) {
    const float* rows[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows[r] = shared + in_[r];
    weights.multiply(rows, sums_);
  }
  __device__ void add_up() { sum_ = add_lanes(sums_); }
  // The state at time t.
  template <bool kTanh>
  __device__ void advance(int t) {
    value_ = Direction::template next<kTanh>(sum_, second_, t < length_, start_);
  }
  // To all blocks, if that is wanted; all lanes have to be here.
  __device__ void give(bool is_wanted, const Recipient& recipient) const {
    float values[4];
#pragma unroll
    for (int o = 0; o < 4; ++o) values[o] = __shfl_sync(kAllLanes, value_, 8 * o + (kRows > 1 ? 4 * lane_.row : 0));
    const bool gives = is_wanted && recipient.exists && (kRows > 1 || lane_.row == 0);
    transaction_store(gives, to_, values, barrier_);
  }
  // To this block alone: `state` of the first row, from the warp's first unit on.
  __device__ void put(float* state) const {
    if (lane_.among == 0 && (kRows > 1 || lane_.row == 0))
      state[(kRows > 1 ? kUnits * lane_.row : 0) + lane_.output] = value_;
  }
  // To device memory.
  __device__ void keep(int t) {
    if (t < length_) *out_ = value_;
    else if (direction_.last() && t == length_) *last_ = sum_;
    out_ += Direction::kTowards * direction_.a.units;
  }

 private:
  const Direction& direction_;
  const Lane& lane_;
  int length_ = -1;  // of the row whose unit the lane owns
  float start_ = 0.0f;
  const float* from_[kOperands];
  float *out_, *last_ = nullptr;
  int in_[kRows];
  Remote to_, barrier_;
  float given_[kOperands], second_ = 0.0f, sums_[kRows][4], sum_ = 0.0f, value_ = 0.0f;
};

}  // namespace dmm::cuda
