#pragma once

#include "exchange.cuh"
#include "matrix.cuh"
#include "ragged.cuh"
#include "rnn_scan.h"
#include "scan_kernels.h"
#include "tensor_cores.cuh"

namespace dmm::cuda {

// The differences between a scan and its gradient. In both, a step multiplies a state by a weight, and `finish` computes
// the next state from the product, or returns that the row ends here. Groups advance independently: each begins with the
// end, or the start, of its longest row.
struct RnnForward {  // from the end back to 0
  static constexpr int kOperands = 1;
  const RnnScan& a;

  __device__ int steps(int longest) const { return longest; }
  __device__ int time(int step, int longest) const { return longest - 1 - step; }
  // A row takes part in a step if it is longer than this.
  __device__ int shortest(int t) const { return t; }
  __device__ float weight(int output, int input) const { return a.w_hh.at(output, input); }
  __device__ float start(const Row& row, int unit) const { return *a.h_0.at(row.particle, row.sequence, 0, unit); }
  __device__ float* out() const { return a.h; }

  __device__ void fetch(const Row& row, int t, int unit, float* const (&to)[kOperands]) const {
    copy_async(to[0], a.x_proj.at(row.particle, row.sequence, strides_to(a, t, row.length), unit));
  }
  __device__ bool finish(const Row&, int, int, float product, float* const (&given)[kOperands], float& state) const {
    const float sum = product + *given[0];
    state = a.tanh ? tanhf(sum) : sum < 0.0f ? 0.0f : sum;  // propagates NaN, unlike a maximum
    return true;
  }
};

struct RnnBackward {  // from 0 to the end, with one more step for dh_0
  static constexpr int kOperands = 2;
  const RnnScanBackward& a;

  __device__ int steps(int longest) const { return longest + 1; }
  __device__ int time(int step, int) const { return step; }
  __device__ int shortest(int t) const { return t - 1; }
  __device__ float weight(int output, int input) const { return a.w_hh.at(input, output); }
  __device__ float start(const Row&, int) const { return 0.0f; }
  __device__ float* out() const { return a.dx_proj; }

  __device__ void fetch(const Row& row, int t, int unit, float* const (&to)[kOperands]) const {
    const int strides = strides_to(a, t, row.length);
    copy_async(to[0], a.dh.at(row.particle, row.sequence, strides, unit));
    copy_async(to[1], a.h.at(row.particle, row.sequence, strides, unit));
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

// The method of multiplication: in float32, or on tensor cores.
template <int kQuads>
struct InFloat32 {
  template <class Source>
  using Of = Weights<kQuads, Source>;
};
template <int kTiles, int kQuads>
struct OnTensorCores {
  template <class Source>
  using Of = TensorCoreWeights<kTiles, kQuads, Source>;
};

template <class Direction, class How, class Args>
class RnnScanBlock {
 public:
  __device__ RnnScanBlock(const Args& a, float* shared)
      : a_(a),
        direction_{a},
        w_(a.tiling),
        first_(cluster_.rank() * w_.outputs),
        units_(first_ >= a.units ? 0 : a.units - first_ < w_.outputs ? a.units - first_ : w_.outputs),
        deal_(units_),
        rows_(a.ragged, cluster_, reinterpret_cast<Row*>(shared)),
        barriers_(shared + 4 * a.ragged.rows_per_cluster),
        states_(barriers_ + 4 * a.ragged.groups()),
        partials_(states_ + 2 * a.ragged.rows_per_cluster * w_.stride()),
        weights_(partials_ + 2 * w_.partials()),
        operands_(weights_ + w_.shared_weights(w_.threads())) {}

  __device__ void run() {
    const auto source = [this](int output, int input) {
      return output < units_ && input < a_.units ? direction_.weight(first_ + output, input) : 0.0f;
    };
    const typename How::template Of<decltype(source)> weights(w_, weights_, source);
    for_each(Deal(w_.stride()), rows_.count(), w_.stride(), [&](int row, int unit) {
      const float value = unit < a_.units ? direction_.start(rows_[row], unit) : 0.0f;
      *state(0, row, unit) = *state(1, row, unit) = value;
    });
    clear_past_end();
    const int blocks_with_units = (a_.units + w_.outputs - 1) / w_.outputs;
    Exchange exchange(cluster_, blocks_with_units, reinterpret_cast<uint64_t*>(barriers_), a_.hang);
    exchange.start(rows_.groups(), [this](int group, int step) { return bytes(group, step); });
    if (units_ == 0) return;
    fetch(0);
    // Groups alternate, so that the transfer of one overlaps with the computation of another. The first has the longest row.
    const int steps = direction_.steps(rows_.longest(0));
    for (int step = 0; step < steps; ++step) {
      fetch(step + 1);
      for (int group = 0; group < rows_.groups() && step < direction_.steps(rows_.longest(group)); ++group, turn_ ^= 1)
        take_step(exchange, group, step, weights);
    }
    exchange.finish(rows_.groups(), [this](int group) { return exchanged(group); });
  }

 private:
  // A step writes one state while the other is still read.
  __device__ float* state(int step, int row, int unit) const {
    return states_ + ((step & 1) * a_.ragged.rows_per_cluster + row) * w_.stride() + unit;
  }
  __device__ void given(int step, int row, int unit, float* (&at)[Direction::kOperands]) const {
    for (int i = 0; i < Direction::kOperands; ++i)
      at[i] = operands_ +
              (((step & 1) * Direction::kOperands + i) * a_.ragged.rows_per_cluster + row) * w_.outputs + unit;
  }

  // The number of a group's steps with an exchange: all but the last, whose state no block reads.
  __device__ int exchanged(int group) const {
    const int steps = direction_.steps(rows_.longest(group));
    return steps > 0 ? steps - 1 : 0;
  }
  __device__ bool gives(int group, int step) const { return step + 1 < direction_.steps(rows_.longest(group)); }
  __device__ int rows_given(int group, int step) const {
    return rows_.more_than(group, direction_.time(step, rows_.longest(group)));
  }
  // Bytes that a block receives from all blocks.
  __device__ int bytes(int group, int step) const {
    return gives(group, step) ? 4 * rows_given(group, step) * a_.units : 0;
  }

  // Prefetches the operands of a step from device memory, one step ahead. Each thread fetches the operands that it uses.
  __device__ void fetch(int step) const {
    for (int group = 0; group < rows_.groups(); ++group) {
      const int t = direction_.time(step, rows_.longest(group));
      if (t < 0) continue;  // the group is finished
      for_rows(deal_, rows_.first(group), rows_.more_than(group, t), units_, [&](int row, int unit) {
        float* to[Direction::kOperands];
        given(step, row, unit, to);
        direction_.fetch(rows_[row], t, first_ + unit, to);
      });
    }
    copies_end();
  }

  template <class W>
  __device__ void take_step(Exchange& exchange, int group, int step, const W& weights) {
    const int t = direction_.time(step, rows_.longest(group)), first = rows_.first(group);
    const int rows = rows_.more_than(group, direction_.shortest(t));
    float* const partials = partials_ + turn_ * w_.partials();
    if (step > 0) {
      exchange.wait(group, step - 1, [&] { return rows_given(group, step - 1); });
      if (threadIdx.x == 0 && gives(group, step + 1)) exchange.expect(group, step + 1, bytes(group, step + 1));
    }
    weights.multiply(rows, state(step + 1, first, 0), partials);
    copies_done<1>();
    __syncthreads();
    const bool gives = this->gives(group, step);
    for_rows(deal_, first, rows, units_, [&](int row, int unit) {
      float *from[Direction::kOperands], value;
      given(step, row, unit, from);
      const float product = add_up(w_, partials, rows, row - first, unit);
      const Row& own = rows_[row];
      if (!direction_.finish(own, t, first_ + unit, product, from, value)) return;
      if (gives) exchange.give(group, step, state(step, row, first_ + unit), value);
      float* const out = direction_.out() + int64_t{own.index} * a_.ragged.steps * a_.units + first_;
      out[int64_t{strides_to(a_, t, own.length)} * a_.out_step + unit] = value;
    });
  }

  __device__ void clear_past_end() const {
    for (int row = 0; row < rows_.count(); ++row) {
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
  const ClusterRows rows_;
  float *const barriers_, *const states_, *const partials_, *const weights_, *const operands_;
  int turn_ = 0;
};

template <class How>
__global__ __launch_bounds__(kMostThreads, 1) void rnn_scan_fwd_kernel(const __grid_constant__ RnnScan a) {
  DMM_SHARED(float, shared);
  RnnScanBlock<RnnForward, How, RnnScan>(a, shared).run();
}

template <class How>
__global__ __launch_bounds__(kMostThreads, 1) void rnn_scan_bwd_kernel(const __grid_constant__ RnnScanBackward a) {
  DMM_SHARED(float, shared);
  RnnScanBlock<RnnBackward, How, RnnScanBackward>(a, shared).run();
}

// Calls `run` with the method of multiplication for the tiling; returns false if there is no kernel.
template <class Run>
bool with_rnn_kernel(const Tiling& tiling, Run run) {
#define DMM_TRY(quads) \
  if (!tiling.tensor_tiles && tiling.in_registers == quads) return run(InFloat32<quads>{}), true;
  DMM_RNN_KERNELS(DMM_TRY)
#undef DMM_TRY
#define DMM_TRY(tiles, quads) \
  if (tiling.tensor_tiles == tiles && tiling.in_registers == quads) return run(OnTensorCores<tiles, quads>{}), true;
  DMM_RNN_TENSOR_KERNELS(DMM_TRY)
#undef DMM_TRY
  return false;
}

}  // namespace dmm::cuda
