#pragma once

#include "matrix.cuh"
#include "ragged.cuh"
#include "rnn_scan.h"

namespace dmm::cuda {

// What the two directions do differently. In both, step s multiplies a state by a weight, and `finish` makes of the
// product the state of the next step, or tells that this row's ends here.
struct RnnForward {  // from the longest row's end back to 0
  static constexpr int kOperands = 1;
  const RnnScan& a;

  __device__ int steps(int longest) const { return longest; }
  __device__ int time(int step, int longest) const { return longest - 1 - step; }
  // A row takes part from its last step on.
  __device__ int shortest(int t) const { return t; }
  __device__ float weight(int output, int input) const { return a.w_hh.at(output, input); }
  __device__ float start(const Row& row, int unit) const { return *a.h_0.at(row.particle, row.sequence, 0, unit); }
  __device__ float* out() const { return a.h; }

  __device__ void fetch(const Row& row, int t, int unit, float* const (&to)[kOperands]) const {
    copy_async(to[0], a.x_proj.at(row.particle, row.sequence, t, unit));
  }
  __device__ bool finish(const Row&, int, int, float product, float* const (&given)[kOperands], float& state) const {
    const float sum = product + *given[0];
    state = a.tanh ? tanhf(sum) : sum < 0.0f ? 0.0f : sum;  // unlike a maximum, it keeps NaN
    return true;
  }
};

struct RnnBackward {  // from 0 to the longest row's end, and there once more for dh_0
  static constexpr int kOperands = 2;
  const RnnScanBackward& a;

  __device__ int steps(int longest) const { return longest + 1; }
  __device__ int time(int step, int) const { return step; }
  __device__ int shortest(int t) const { return t - 1; }
  __device__ float weight(int output, int input) const { return a.w_hh.at(input, output); }
  __device__ float start(const Row&, int) const { return 0.0f; }
  __device__ float* out() const { return a.dx_proj; }

  __device__ void fetch(const Row& row, int t, int unit, float* const (&to)[kOperands]) const {
    if (t >= row.length) return;
    copy_async(to[0], a.dh.at(row.particle, row.sequence, t, unit));
    copy_async(to[1], a.h.at(row.particle, row.sequence, t, unit));
  }
  __device__ bool finish(const Row& row, int t, int unit, float product, float* const (&given)[kOperands],
                         float& state) const {
    if (t >= row.length) {
      a.dh_0[int64_t{row.index} * a.units + unit] = product;
      return false;
    }
    const float dh = product + *given[0], h = *given[1];
    state = a.tanh ? dh * (1.0f - h * h) : h > 0.0f ? dh : 0.0f;
    return true;
  }
};

template <class Direction, int kQuads, class Args>
class RnnScanBlock {
 public:
  __device__ RnnScanBlock(const Args& a, float* shared)
      : a_(a),
        direction_{a},
        w_(a.tiling),
        first_(cluster_.rank() * w_.outputs),
        units_(first_ >= a.units ? 0 : a.units - first_ < w_.outputs ? a.units - first_ : w_.outputs),
        deal_(units_) {
    const int rows = a.ragged.rows_per_cluster;
    rows_ = reinterpret_cast<Row*>(shared);
    states_ = shared + 4 * rows;
    partials_ = states_ + 2 * rows * w_.stride();
    weights_ = partials_ + 2 * w_.partials();
    operands_ = weights_ + w_.shared_weights(w_.threads());
  }

  __device__ void run() {
    const int count = take_rows(a_.ragged, rows_), longest = rows_[0].length;
    const auto source = [this](int output, int input) {
      return output < units_ && input < a_.units ? direction_.weight(first_ + output, input) : 0.0f;
    };
    const Weights<kQuads, decltype(source)> weights(w_, weights_, source);
    for_each(Deal(w_.stride()), count, w_.stride(), [&](int row, int unit) {
      const float value = unit < a_.units ? direction_.start(rows_[row], unit) : 0.0f;
      state(0)[row * w_.stride() + unit] = state(1)[row * w_.stride() + unit] = value;
    });
    clear_past_end(count);
    Active active(rows_, count), next(rows_, count);
    const int steps = direction_.steps(longest);
    fetch(0, next.more_than(direction_.shortest(direction_.time(0, longest))), longest);
    cluster_.sync();  // no block may be written to before its state is there
    for (int step = 0; step < steps; ++step) {
      const int t = direction_.time(step, longest), rows = active.more_than(direction_.shortest(t));
      if (step + 1 < steps) fetch(step + 1, next.more_than(direction_.shortest(direction_.time(step + 1, longest))), longest);
      else copies_end();
      for (int begin = 0; begin < rows; begin += kChunk, turn_ ^= 1) {
        const int chunk = rows - begin < kChunk ? rows - begin : kChunk;
        float* const partials = partials_ + turn_ * w_.partials();
        weights.multiply(chunk, state(step + 1) + begin * w_.stride(), partials);
        __syncthreads();
        finish(step, t, begin, chunk, partials);
      }
      cluster_.arrive();
      store(step, t, active.more_than(t));
      cluster_.wait();
    }
  }

 private:
  // A step writes one state while the other is still read: one barrier a step is enough, for whoever writes a state
  // again has passed the barrier after all had read it.
  __device__ float* state(int step) const { return states_ + (step & 1) * a_.ragged.rows_per_cluster * w_.stride(); }
  __device__ void given(int step, int row, int unit, float* (&at)[Direction::kOperands]) const {
    for (int i = 0; i < Direction::kOperands; ++i)
      at[i] = operands_ + (((step & 1) * Direction::kOperands + i) * a_.ragged.rows_per_cluster + row) * w_.outputs + unit;
  }

  // What the step will need from device memory, one step ahead. The thread that asks for it is the one to use it.
  __device__ void fetch(int step, int rows, int longest) {
    const int t = direction_.time(step, longest);
    for_each(deal_, rows, units_, [&](int row, int unit) {
      float* to[Direction::kOperands];
      given(step, row, unit, to);
      direction_.fetch(rows_[row], t, first_ + unit, to);
    });
    copies_end();
  }

  __device__ void finish(int step, int t, int begin, int chunk, const float* partials) {
    copies_done<1>();
    for_chunk(deal_, begin, chunk, units_, [&](int row, int unit) {
      float *from[Direction::kOperands], value;
      given(step, row, unit, from);
      const float product = add_up(w_, partials, chunk, row - begin, unit);
      if (!direction_.finish(rows_[row], t, first_ + unit, product, from, value)) return;
      float* const mine = state(step) + row * w_.stride() + first_ + unit;
      *mine = value;
      cluster_.for_others([&](int block) { *cluster_.in(block, mine) = value; });
    });
  }

  // Stores to device memory wait until the others have what they wait for.
  __device__ void store(int step, int t, int rows) const {
    for_each(deal_, rows, units_, [&](int row, int unit) {
      direction_.out()[(int64_t{rows_[row].index} * a_.ragged.steps + t) * a_.units + first_ + unit] =
          state(step)[row * w_.stride() + first_ + unit];
    });
  }

  __device__ void clear_past_end(int count) const {
    for (int row = 0; row < count; ++row) {
      float* const out = direction_.out() + int64_t{rows_[row].index} * a_.ragged.steps * a_.units + first_;
      for_each(deal_, a_.ragged.steps - rows_[row].length, units_, [&](int t, int unit) {
        out[int64_t{rows_[row].length + t} * a_.units + unit] = 0.0f;
      });
    }
  }

  const Args& a_;
  const Direction direction_;
  const Cluster cluster_{};
  const Tiling& w_;
  const int first_, units_;
  const Deal deal_;
  Row* rows_;
  float *states_, *partials_, *operands_, *weights_;
  int turn_ = 0;
};

template <int kQuads>
__global__ __launch_bounds__(kMostThreads, 1) void rnn_scan_fwd_kernel(const __grid_constant__ RnnScan a) {
  DMM_SHARED(float, shared);
  RnnScanBlock<RnnForward, kQuads, RnnScan>(a, shared).run();
}

template <int kQuads>
__global__ __launch_bounds__(kMostThreads, 1) void rnn_scan_bwd_kernel(const __grid_constant__ RnnScanBackward a) {
  DMM_SHARED(float, shared);
  RnnScanBlock<RnnBackward, kQuads, RnnScanBackward>(a, shared).run();
}

}  // namespace dmm::cuda
