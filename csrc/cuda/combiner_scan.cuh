// combiner_scan on a cluster, general kernels. The two directions differ in the beginning of a step, which computes latents
// from operands in device memory (`given`) and the sums of the step before. From the latents follow the hidden units, and
// from these the next sums.
#pragma once

#include <type_traits>

#include "activations.cuh"
#include "combiner_scan.h"
#include "exchange.cuh"
#include "matrix.cuh"
#include "ragged.cuh"
#include "scan_kernels.h"

namespace dmm::cuda {

// Writes zeros at a step past a row's end; this thread writes every stride-th element from `first` on.
template <class Tile>
__device__ inline void clear(const CombinerScanBy<Tile>& a, const Row& row, int t, int first, int stride) {
  const int64_t at = (int64_t{row.index} * a.ragged.steps + t) * a.latents;
  for (int i = first; i < a.latents; i += stride) a.loc[at + i] = a.pre_scale[at + i] = a.z[at + i] = 0.0f;
  if (a.g == nullptr) return;
  float* const g = a.g + (int64_t{row.index} * a.ragged.steps + t) * a.units;
  for (int i = first; i < a.units; i += stride) g[i] = 0.0f;
}
template <class Tile>
__device__ inline void clear(const CombinerScanBackwardBy<Tile>& a, const Row& row, int t, int first, int stride) {
  const int64_t at = int64_t{row.index} * a.ragged.steps + t;
  for (int i = first; i < 2 * a.latents; i += stride) a.dout[at * 2 * a.latents + i] = 0.0f;
  for (int i = first; i < a.latents; i += stride) a.deps[at * a.latents + i] = 0.0f;
  for (int i = first; i < a.units; i += stride) a.da[at * a.units + i] = a.dh[at * a.units + i] = 0.0f;
}

// Writes zeros past the ends of all rows of a cluster or team, whose blocks share the steps.
template <class Args, class Blocks>
__device__ inline void clear_past_ends(const Args& a, const ClusterRows& rows, const Blocks& cluster) {
  for (int row = 0; row < rows.count(); ++row)
    for (int t = rows[row].length + cluster.rank(); t < a.ragged.steps; t += cluster.blocks())
      clear(a, rows[row], t, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x));
}

struct CombinerForward {  // from 0 to the longest row's end; the latents of step t are z_{t-1}
  static constexpr int kLatentOperands = 3, kSums = 2;
  const CombinerScan& a;

  __device__ int time(int step, int) const { return step; }
  __device__ int latent_time(int t) const { return t - 1; }
  // The number of rows of a group that begin the step; at step 0 the latents are already known.
  __device__ int beginning(const ClusterRows& rows, int group, int t) const {
    return t == 0 ? 0 : rows.more_than(group, t - 1);
  }
  __device__ bool has_sums(const Row&, int) const { return true; }
  __device__ float to_unit(int unit, int latent) const { return a.w_z.at(unit, latent); }
  __device__ float from_unit(int output, int unit) const {
    return output < a.latents ? a.w_loc.at(output, unit) : a.w_scale.at(output - a.latents, unit);
  }
  __device__ float start(const Row& row, int latent) const {
    return *a.z_q_0.at(row.particle, row.sequence, 0, latent);
  }

  __device__ void fetch_latent(const Row& row, int t, int latent, float* const (&to)[kLatentOperands]) const {
    const float* base = a.base + (int64_t{row.index} * a.ragged.steps + t) * 2 * a.latents + latent;
    copy_async(to[0], base);
    copy_async(to[1], base + a.latents);
    copy_async(to[2], a.eps.at(row.particle, row.sequence, t, latent));
  }
  __device__ const float* unit_operand(const Row&, int, int unit) const { return a.b_z + unit; }

  __device__ void begin(const Row& row, int t, int latent, const float (&sums)[kSums],
                        float* const (&given)[kLatentOperands], float* latents, bool mine) const {
    const float loc = *given[0] + sums[0], pre_scale = *given[1] + sums[1];
    const float z = *latents = loc + softplus(pre_scale) * *given[2];
    if (!mine) return;
    const int64_t at = (int64_t{row.index} * a.ragged.steps + t - 1) * a.latents + latent;
    a.loc[at] = loc;
    a.pre_scale[at] = pre_scale;
    a.z[at] = z;
  }
  __device__ float unit(const Row&, int, int, float sum, float b_z) const { return 0.5f * tanhf(sum + b_z); }
  // True if units are stored to device memory, which happens after the exchange.
  __device__ bool stores_units() const { return a.g != nullptr; }
  __device__ void store_unit(const Row& row, int t, int unit, float half_g) const {
    a.g[(int64_t{row.index} * a.ragged.steps + t) * a.units + unit] = 2.0f * half_g;
  }
};

struct CombinerBackward {  // from the longest row's end back to 0; the latents of step t are dloc_t and dpre_scale_t
  static constexpr int kLatentOperands = 5, kSums = 1;
  const CombinerScanBackward& a;

  __device__ int time(int step, int longest) const { return longest - 1 - step; }
  __device__ int latent_time(int t) const { return t; }
  __device__ int beginning(const ClusterRows& rows, int group, int t) const { return rows.more_than(group, t); }
  // A row's last step receives no sums.
  __device__ bool has_sums(const Row& row, int t) const { return row.length > t + 1; }
  __device__ float to_unit(int unit, int output) const {
    return output < a.latents ? a.w_loc.at(output, unit) : a.w_scale.at(output - a.latents, unit);
  }
  __device__ float from_unit(int latent, int unit) const { return a.w_z.at(unit, latent); }
  __device__ float start(const Row&, int) const { return 0.0f; }

  __device__ void fetch_latent(const Row& row, int t, int latent, float* const (&to)[kLatentOperands]) const {
    const Sequences<const float> all[] = {a.dz, a.dloc, a.dpre_scale, a.eps, a.pre_scale};
#pragma unroll
    for (int i = 0; i < kLatentOperands; ++i) copy_async(to[i], all[i].at(row.particle, row.sequence, t, latent));
  }
  __device__ const float* unit_operand(const Row& row, int t, int unit) const {
    return a.g + (int64_t{row.index} * a.ragged.steps + t) * a.units + unit;
  }

  __device__ void begin(const Row& row, int t, int latent, const float (&sums)[kSums],
                        float* const (&given)[kLatentOperands], float* latents, bool mine) const {
    if (t < 0) {  // past the first step: the sums are the gradient of z_q_0
      if (mine) a.dz_q_0[int64_t{row.index} * a.latents + latent] = sums[0];
      return;
    }
    const float dz = *given[0] + sums[0], s = *given[4];
    const float dloc = latents[0] = *given[1] + dz;
    const float dpre_scale = latents[a.latents] = *given[2] + dz * *given[3] * sigmoid(s);
    if (!mine) return;
    const int64_t at = int64_t{row.index} * a.ragged.steps + t;
    a.dout[at * 2 * a.latents + latent] = dloc;
    a.dout[at * 2 * a.latents + a.latents + latent] = dpre_scale;
    a.deps[at * a.latents + latent] = dz * softplus(s);
  }
  __device__ float unit(const Row& row, int t, int unit, float sum, float g) const {
    const int64_t at = (int64_t{row.index} * a.ragged.steps + t) * a.units + unit;
    const float dh = 0.5f * sum, da = dh * (1.0f - g * g);
    a.dh[at] = dh;
    a.da[at] = da;
    return da;
  }
  // Everything has already been stored.
  __device__ bool stores_units() const { return false; }
  __device__ void store_unit(const Row&, int, int, float) const {}
};

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
        sum_deal_(from_.outputs),
        rows_(a.ragged, cluster_, reinterpret_cast<Row*>(shared)) {
    const int rows = a.ragged.rows_per_cluster, threads = static_cast<int>(blockDim.x);
    float* at = shared + 4 * rows;
    const auto take = [&](int64_t count) {
      float* const taken = at;
      at += count;
      return taken;
    };
    stored_ = (a.latents + cluster_.blocks() - 1) / cluster_.blocks();
    first_stored_ = cluster_.rank() * stored_;
    partials_size_ = static_cast<int>(to_.partials() > from_.partials() ? to_.partials() : from_.partials());
    barriers_ = take(4 * a.ragged.groups());
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
    const auto to_source = [this](int output, int input) {
      return output < units_ && input < to_.inputs ? direction_.to_unit(first_ + output, input) : 0.0f;
    };
    const auto from_source = [this](int output, int input) {
      return output < from_.outputs && input < units_ ? direction_.from_unit(output, first_ + input) : 0.0f;
    };
    const Weights<kToQuads, decltype(to_source)> to(to_, to_weights_, to_source);
    const Weights<kFromQuads, decltype(from_source)> from(from_, from_weights_, from_source);
    for_each(Deal(to_.stride()), rows_.count(), to_.stride(), [&](int row, int i) {
      latents_[row * to_.stride() + i] = i < a_.latents ? direction_.start(rows_[row], i) : 0.0f;
    });
    for_each(Deal(from_.stride()), rows_.count(), from_.stride(),
             [&](int row, int i) { hidden_[row * from_.stride() + i] = 0.0f; });
    clear_past_ends(a_, rows_, cluster_);
    // Blocks without units take part too, with zeros.
    Exchange exchange(cluster_, cluster_.blocks(), reinterpret_cast<uint64_t*>(barriers_), a_.hang);
    exchange.start(rows_.groups(), [this](int group, int step) { return bytes(group, step); });
    fetch(0);
    // Groups alternate, so that the transfer of one overlaps with the computation of another. The first has the longest row.
    for (int step = 0; step <= rows_.longest(0); ++step) {
      fetch(step + 1);
      for (int group = 0; group < rows_.groups() && step <= rows_.longest(group); ++group) {
        begin(exchange, group, step);
        if (step == rows_.longest(group)) continue;
        const int rows = rows_.more_than(group, direction_.time(step, rows_.longest(group)));
        to_units(group, step, rows, to);
        from_units(exchange, group, step, rows, from);
        store_units(group, step, rows);
      }
    }
    exchange.finish(rows_.groups(), [this](int group) { return rows_.longest(group); });
  }

 private:
  __device__ float* latent_operand(int step, int i, int row, int latent) const {
    return latent_operands_ +
           (((step & 1) * Direction::kLatentOperands + i) * a_.ragged.rows_per_cluster + row) * a_.latents + latent;
  }
  __device__ void latent_operands(int step, int row, int latent, float* (&at)[Direction::kLatentOperands]) const {
    for (int i = 0; i < Direction::kLatentOperands; ++i) at[i] = latent_operand(step, i, row, latent);
  }
  __device__ float* unit_operand(int step, int row, int unit) const {
    return unit_operands_ + ((step & 1) * a_.ragged.rows_per_cluster + row) * to_.outputs + unit;
  }
  // A step writes one inbox while the other is still read.
  __device__ float* inbox(int step, int block, int row, int output) const {
    return inbox_ + (((step & 1) * cluster_.blocks() + block) * a_.ragged.rows_per_cluster + row) * from_.outputs +
           output;
  }

  __device__ int rows_given(int group, int step) const {
    return rows_.more_than(group, direction_.time(step, rows_.longest(group)));
  }
  // Bytes that a block receives from all blocks; 0 past the last step.
  __device__ int bytes(int group, int step) const {
    return step < rows_.longest(group) ? 4 * rows_given(group, step) * from_.outputs * cluster_.blocks() : 0;
  }

  // Prefetches the operands of a step from device memory, one step ahead. Each thread fetches the operands that it uses.
  __device__ void fetch(int step) const {
    for (int group = 0; group < rows_.groups(); ++group) {
      const int t = direction_.time(step, rows_.longest(group)), of_latents = direction_.latent_time(t);
      const auto rows = [&](int time) { return time < 0 ? 0 : rows_.more_than(group, time); };
      for_rows(latent_deal_, rows_.first(group), rows(of_latents), a_.latents, [&](int row, int latent) {
        float* to[Direction::kLatentOperands];
        latent_operands(step, row, latent, to);
        direction_.fetch_latent(rows_[row], of_latents, latent, to);
      });
      for_rows(unit_deal_, rows_.first(group), rows(t), units_, [&](int row, int unit) {
        copy_async(unit_operand(step, row, unit), direction_.unit_operand(rows_[row], t, first_ + unit));
      });
    }
    copies_end();
  }

  // Computes the step's latents from the sums that the blocks sent in the step before.
  __device__ void begin(Exchange& exchange, int group, int step) const {
    if (step > 0) {
      exchange.wait(group, step - 1, [&] { return rows_given(group, step - 1); });
      if (threadIdx.x == 0 && step + 1 < rows_.longest(group))
        exchange.expect(group, step + 1, bytes(group, step + 1));
    }
    copies_done<1>();
    const int t = direction_.time(step, rows_.longest(group));
    for_rows(latent_deal_, rows_.first(group), direction_.beginning(rows_, group, t), a_.latents,
             [&](int row, int latent) {
               float *given[Direction::kLatentOperands], sums[Direction::kSums] = {};
               latent_operands(step, row, latent, given);
               if (direction_.has_sums(rows_[row], t))
                 for (int block = 0; block < cluster_.blocks(); ++block)
                   for (int i = 0; i < Direction::kSums; ++i)
                     sums[i] += *inbox(step + 1, block, row, i * a_.latents + latent);
               direction_.begin(rows_[row], t, latent, sums, given, latents_ + row * to_.stride() + latent, mine(latent));
             });
    __syncthreads();
  }

  // All blocks have the latents; each stores a part of them.
  __device__ bool mine(int latent) const { return latent >= first_stored_ && latent < first_stored_ + stored_; }

  template <class W>
  __device__ void to_units(int group, int step, int rows, const W& weights) {
    float* const partials = next_partials();
    const int first = rows_.first(group), t = direction_.time(step, rows_.longest(group));
    weights.multiply(rows, latents_ + first * to_.stride(), partials);
    __syncthreads();
    for_rows(unit_deal_, first, rows, units_, [&](int row, int unit) {
      hidden_[row * from_.stride() + unit] =
          direction_.unit(rows_[row], t, first_ + unit, add_up(to_, partials, rows, row - first, unit),
                          *unit_operand(step, row, unit));
    });
    __syncthreads();
  }

  template <class W>
  __device__ void from_units(const Exchange& exchange, int group, int step, int rows, const W& weights) {
    float* const partials = next_partials();
    const int first = rows_.first(group);
    weights.multiply(rows, hidden_ + first * from_.stride(), partials);
    __syncthreads();
    for_rows(sum_deal_, first, rows, from_.outputs, [&](int row, int output) {
      exchange.give(group, step, inbox(step, cluster_.rank(), row, output),
                    add_up(from_, partials, rows, row - first, output));
    });
  }

  // A thread stores what it has written itself, so that no barrier is needed.
  __device__ void store_units(int group, int step, int rows) const {
    if (!direction_.stores_units()) return;
    const int t = direction_.time(step, rows_.longest(group));
    for_rows(unit_deal_, rows_.first(group), rows, units_, [&](int row, int unit) {
      direction_.store_unit(rows_[row], t, first_ + unit, hidden_[row * from_.stride() + unit]);
    });
  }

  // Double buffered: one buffer is written while the other may still be read.
  __device__ float* next_partials() { return partials_ + (turn_ ^= 1) * partials_size_; }

  const Args& a_;
  const Direction direction_;
  const Cluster cluster_{};
  const Tiling &to_, &from_;
  const int first_, units_;
  const Deal unit_deal_, latent_deal_, sum_deal_;
  const ClusterRows rows_;
  float *barriers_, *latents_, *hidden_, *partials_, *to_weights_, *from_weights_, *inbox_, *latent_operands_,
      *unit_operands_;
  int stored_, first_stored_, partials_size_, turn_ = 0;
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

// Calls `run` with the register quads of the smaller and the larger matrix of a kernel; returns false if there is none.
template <class Run>
bool with_combiner_kernel(const Tiling& smaller, const Tiling& larger, Run run) {
#define DMM_TRY(small, large)                                               \
  if (smaller.in_registers == small && larger.in_registers == large)        \
    return run(std::integral_constant<int, small>{}, std::integral_constant<int, large>{}), true;
  DMM_COMBINER_KERNELS(DMM_TRY)
#undef DMM_TRY
  return false;
}

}  // namespace dmm::cuda
