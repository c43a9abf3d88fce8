// What the two directions of combiner_scan do differently. A step begins with latents, made of what came from device
// memory (`given`) and of the sums that the step before left; from them come
// the hidden units, and from those the next sums.
#pragma once

#include "activations.cuh"
#include "combiner_scan.h"
#include "ragged.cuh"

namespace dmm::cuda {

// Zeros at a step past a row's end, of which this thread has the first-th number and every stride-th after it.
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

// Past the ends of all rows of a cluster, whose blocks share the steps.
template <class Args>
__device__ inline void clear_past_ends(const Args& a, const Rows& rows, const Cluster& cluster) {
  for (int row = 0; row < rows.count(); ++row)
    for (int t = rows[row].length + cluster.rank(); t < a.ragged.steps; t += cluster.blocks())
      clear(a, rows[row], t, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x));
}

struct CombinerForward {  // from 0 to the longest row's end; the latents of step t are z_{t-1}
  static constexpr int kLatentOperands = 3, kSums = 2;
  const CombinerScan& a;

  __device__ int time(int step, int) const { return step; }
  __device__ int latent_time(int t) const { return t - 1; }
  // How many rows of a group begin the step: at 0 the latents are there already.
  __device__ int beginning(const Rows& rows, int group, int t) const {
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
  // What is stored of the units when the other blocks have what they wait for.
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
  __device__ int beginning(const Rows& rows, int group, int t) const { return rows.more_than(group, t); }
  // Nothing comes back to a row's last step.
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
    if (t < 0) {  // past the first step: what is left is for z_q_0
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
  // All is stored already.
  __device__ bool stores_units() const { return false; }
  __device__ void store_unit(const Row&, int, int, float) const {}
};

}  // namespace dmm::cuda
