#pragma once

#include "combiner_directions.cuh"
#include "combiner_scan.h"
#include "matrix.cuh"
#include "ragged.cuh"

namespace dmm::cuda {

template <class Direction, int kToQuads, int kFromQuads, class Args>
class CombinerScanBlock {
 public:
  __device__ CombinerScanBlock(const Args& a, float* shared)
      : a_(a),
        direction_{a},
        to_(a.to_units),
        from_(a.from_units),
        first_(cluster_.rank() * to_.outputs),
        units_(first_ >= a.units ? 0 : a.units - first_ < to_.outputs ? a.units - first_ : to_.outputs),
        unit_deal_(units_),
        latent_deal_(a.latents),
        sum_deal_(from_.outputs) {
    const int rows = a.ragged.rows_per_cluster, threads = static_cast<int>(blockDim.x);
    float* at = shared;
    const auto take = [&](int64_t count) {
      float* const taken = at;
      at += count;
      return taken;
    };
    partials_size_ = static_cast<int>(to_.partials() > from_.partials() ? to_.partials() : from_.partials());
    rows_ = reinterpret_cast<Row*>(take(4 * rows));
    latents_ = take(rows * to_.stride());
    hidden_ = take(rows * from_.stride());
    partials_ = take(2 * partials_size_);
    to_weights_ = take(to_.shared_weights(threads));
    from_weights_ = take(from_.shared_weights(threads));
    inbox_ = take(2 * cluster_.blocks() * rows * from_.outputs);
    latent_operands_ = take(2 * Direction::kLatentOperands * rows * a.latents);
    unit_operands_ = take(2 * rows * to_.outputs);
  }

  __device__ void run() {
    const int count = take_rows(a_.ragged, rows_), longest = rows_[0].length;
    const auto to_source = [this](int output, int input) {
      return output < units_ && input < to_.inputs ? direction_.to_unit(first_ + output, input) : 0.0f;
    };
    const auto from_source = [this](int output, int input) {
      return output < from_.outputs && input < units_ ? direction_.from_unit(output, first_ + input) : 0.0f;
    };
    const Weights<kToQuads, decltype(to_source)> to(to_, to_weights_, to_source);
    const Weights<kFromQuads, decltype(from_source)> from(from_, from_weights_, from_source);
    for_each(Deal(to_.stride()), count, to_.stride(), [&](int row, int i) {
      latents_[row * to_.stride() + i] = i < a_.latents ? direction_.start(rows_[row], i) : 0.0f;
    });
    for_each(Deal(from_.stride()), count, from_.stride(),
             [&](int row, int i) { hidden_[row * from_.stride() + i] = 0.0f; });
    clear_past_end(count);
    Active active(rows_, count), next(rows_, count);
    fetch_units(0, count, longest);
    fetch_latents(0, count, longest);
    cluster_.sync();  // no block may be written to before it runs
    for (int step = 0; step < longest; ++step) {
      const int t = direction_.time(step, longest);
      begin(step, t, active.more_than(direction_.shortest(t)));
      __syncthreads();
      const int rows = active.more_than(t);
      fetch_units(step + 1, step + 1 < longest ? next.more_than(direction_.time(step + 1, longest)) : 0, longest);
      to_units(step, rows, to);
      from_units(step, rows, from);
      cluster_.arrive();
      store_latents(step, t, active.more_than(direction_.shortest(t)));
      store_units(step, t, rows);
      fetch_latents(step + 1, count, longest);
      cluster_.wait();
    }
    const int t = direction_.time(longest, longest);
    begin(longest, t, active.more_than(direction_.shortest(t)));
    store_latents(longest, t, active.more_than(direction_.shortest(t)));
  }

 private:
  __device__ float* latent_operand(int step, int i, int row, int latent) const {
    return latent_operands_ +
           (((step & 1) * Direction::kLatentOperands + i) * a_.ragged.rows_per_cluster + row) * a_.latents + latent;
  }
  __device__ float* unit_operand(int step, int row, int unit) const {
    return unit_operands_ + ((step & 1) * a_.ragged.rows_per_cluster + row) * to_.outputs + unit;
  }
  // A step writes one inbox while the other is still read: one barrier a step is enough, for whoever writes an inbox
  // again has passed the barrier after all had read it.
  __device__ float* inbox(int step, int block, int row, int output) const {
    return inbox_ + (((step & 1) * cluster_.blocks() + block) * a_.ragged.rows_per_cluster + row) * from_.outputs +
           output;
  }

  // What comes from device memory is asked for about a step ahead, by the thread that will use it.
  __device__ void fetch_latents(int step, int count, int longest) const {
    const int t = direction_.latent_time(direction_.time(step, longest));
    for_each(latent_deal_, count, a_.latents, [&](int row, int latent) {
      if (t < 0 || rows_[row].length <= t) return;
      float* to[Direction::kLatentOperands];
      for (int i = 0; i < Direction::kLatentOperands; ++i) to[i] = latent_operand(step, i, row, latent);
      direction_.fetch_latent(rows_[row], t, latent, to);
    });
    copies_end();
  }
  __device__ void fetch_units(int step, int rows, int longest) const {
    const int t = direction_.time(step, longest);
    for_each(unit_deal_, rows, units_, [&](int row, int unit) {
      if (t >= 0 && t < rows_[row].length)
        copy_async(unit_operand(step, row, unit), direction_.unit_operand(rows_[row], t, first_ + unit));
    });
    copies_end();
  }

  // The step's latents, from what the blocks gave in the step before.
  __device__ void begin(int step, int t, int rows) const {
    copies_done<0>();
    for_each(latent_deal_, rows, a_.latents, [&](int row, int latent) {
      float* given[Direction::kLatentOperands];
      for (int i = 0; i < Direction::kLatentOperands; ++i) given[i] = latent_operand(step, i, row, latent);
      float sums[Direction::kSums] = {};
      if (direction_.has_sums(rows_[row], t))
        for (int block = 0; block < cluster_.blocks(); ++block)
          for (int i = 0; i < Direction::kSums; ++i)
            sums[i] += *inbox(step + 1, block, row, i * a_.latents + latent);
      direction_.begin(rows_[row], t, sums, given, latents_ + row * to_.stride() + latent);
    });
  }

  template <class W>
  __device__ void to_units(int step, int rows, const W& weights) {
    for (int begin = 0; begin < rows; begin += kChunk, turn_ ^= 1) {
      const int chunk = rows - begin < kChunk ? rows - begin : kChunk;
      float* const partials = partials_ + turn_ * partials_size_;
      weights.multiply(chunk, latents_ + begin * to_.stride(), partials);
      __syncthreads();
      for_chunk(unit_deal_, begin, chunk, units_, [&](int row, int unit) {
        hidden_[row * from_.stride() + unit] =
            direction_.unit(add_up(to_, partials, chunk, row - begin, unit), unit_operand(step, row, unit));
      });
    }
    __syncthreads();
  }

  template <class W>
  __device__ void from_units(int step, int rows, const W& weights) {
    for (int begin = 0; begin < rows; begin += kChunk, turn_ ^= 1) {
      const int chunk = rows - begin < kChunk ? rows - begin : kChunk;
      float* const partials = partials_ + turn_ * partials_size_;
      weights.multiply(chunk, hidden_ + begin * from_.stride(), partials);
      __syncthreads();
      for_chunk(sum_deal_, begin, chunk, from_.outputs, [&](int row, int output) {
        const float sum = add_up(from_, partials, chunk, row - begin, output);
        float* const mine = inbox(step, cluster_.rank(), row, output);
        *mine = sum;
        cluster_.for_others([&](int block) { *cluster_.in(block, mine) = sum; });
      });
    }
  }

  // Stores to device memory wait until the others have what they wait for. Of what all blocks know each stores a part.
  __device__ void store_latents(int step, int t, int rows) const {
    const int part = (a_.latents + cluster_.blocks() - 1) / cluster_.blocks(), first = cluster_.rank() * part;
    for_each(latent_deal_, rows, a_.latents, [&](int row, int latent) {
      if (latent < first || latent >= first + part) return;
      float* made[Direction::kLatentOperands];
      for (int i = 0; i < Direction::kLatentOperands; ++i) made[i] = latent_operand(step, i, row, latent);
      direction_.store_latent(rows_[row], direction_.latent_time(t), latent, made);
    });
  }
  __device__ void store_units(int step, int t, int rows) const {
    for_each(unit_deal_, rows, units_, [&](int row, int unit) {
      direction_.store_unit(rows_[row], t, first_ + unit, hidden_[row * from_.stride() + unit],
                            *unit_operand(step, row, unit));
    });
  }

  __device__ void clear_past_end(int count) const {
    const int rank = cluster_.rank(), blocks = cluster_.blocks();
    for (int row = 0; row < count; ++row)
      for (int t = rows_[row].length + rank; t < a_.ragged.steps; t += blocks)
        direction_.clear(rows_[row], t, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x));
  }

  const Args& a_;
  const Direction direction_;
  const Cluster cluster_{};
  const Tiling &to_, &from_;
  const int first_, units_;
  const Deal unit_deal_, latent_deal_, sum_deal_;
  Row* rows_;
  float *latents_, *hidden_, *partials_, *to_weights_, *from_weights_, *inbox_, *latent_operands_, *unit_operands_;
  int partials_size_, turn_ = 0;
};

template <int kToQuads, int kFromQuads>
__global__ __launch_bounds__(kMostThreads, 1) void combiner_scan_fwd_kernel(const __grid_constant__ CombinerScan a) {
  DMM_SHARED(float, shared);
  CombinerScanBlock<CombinerForward, kToQuads, kFromQuads, CombinerScan>(a, shared).run();
}

template <int kToQuads, int kFromQuads>
__global__ __launch_bounds__(kMostThreads, 1) void combiner_scan_bwd_kernel(
    const __grid_constant__ CombinerScanBackward a) {
  DMM_SHARED(float, shared);
  CombinerScanBlock<CombinerBackward, kToQuads, kFromQuads, CombinerScanBackward>(a, shared).run();
}

}  // namespace dmm::cuda
