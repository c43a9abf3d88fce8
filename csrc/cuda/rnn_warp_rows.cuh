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

}  // namespace dmm::cuda
