// What the two directions of combiner_scan do differently where a block takes one row at a time. A thread has one latent
// and one unit, or none; what it needs of them for the next step it fetches ahead, and what it makes it stores when the
// other blocks have what they wait for. Steps are counted from the row's first to be computed; in the one past its last
// only latents are left.
#pragma once

#include "combiner_directions.cuh"

namespace dmm::cuda {

// The latents of step s are z_{s-1}.
struct RowsForward {
  static constexpr int kSums = 2;
  static constexpr bool kByInputs = true;  // a row of a weight lies side by side
  const CombinerRows& a;
  const int latent, unit;
  const bool stores;  // the latent
  float b_z, loc, pre_scale, z;
  float given[3];  // the next base of loc and of pre_scale, and eps

  __device__ RowsForward(const CombinerRows& a, int latent, int unit, bool stores)
      : a(a), latent(latent), unit(unit), stores(stores), b_z(unit < a.units ? a.b_z[unit] : 0.0f) {}

  // Where the weights lie.
  __device__ static const float* to_unit(const CombinerRows& a, int unit, int latent) {
    return a.w_z.place(unit, latent);
  }
  __device__ static const float* from_unit(const CombinerRows& a, int output, int unit) {
    return (output % 2 ? a.w_scale : a.w_loc).place(output / 2, unit);
  }
  // What no step is computed for.
  __device__ void skip(const Row&) const {}

  __device__ void fetch(const Row& row, int step) {
    if (latent >= a.latents) return;
    if (step == 0) {
      given[0] = *a.z_q_0.at(row.particle, row.sequence, 0, latent);
      return;
    }
    const int t = step - 1;
    const float* base = a.base + (int64_t{row.index} * a.ragged.steps + t) * 2 * a.latents + latent;
    given[0] = base[0];
    given[1] = base[a.latents];
    given[2] = *a.eps.at(row.particle, row.sequence, t, latent);
  }
  __device__ void prepare() {}
  // `at` is where what is made of the latent lies in the vector that is multiplied.
  __device__ void begin(const Row&, int step, const float (&sums)[kSums], float* const (&at)[2]) {
    z = given[0];
    if (step > 0) {
      loc = given[0] + sums[0];
      pre_scale = given[1] + sums[1];
      z = loc + softplus(pre_scale) * given[2];
    }
    *at[0] = z;
  }
  __device__ float make_unit(float sum) { return 0.5f * tanhf(sum + b_z); }

  __device__ void store_latent(const Row& row, int step) const {
    if (!stores || step == 0) return;
    const int64_t at = (int64_t{row.index} * a.ragged.steps + step - 1) * a.latents + latent;
    a.loc[at] = loc;
    a.pre_scale[at] = pre_scale;
    a.z[at] = z;
  }
  __device__ void store_unit(const Row&, int) const {}
};

// From the row's end back: those of step s are dloc and dpre_scale of t = length - 1 - s.
struct RowsBackward {
  static constexpr int kSums = 1;
  static constexpr bool kByInputs = false;
  const CombinerRowsBackward& a;
  const int latent, unit;
  const bool stores;
  float dz, dloc, dpre_scale, dh, da;
  float given[6];  // the next dz, dloc, dpre_scale, eps, pre_scale, g

  __device__ RowsBackward(const CombinerRowsBackward& a, int latent, int unit, bool stores)
      : a(a), latent(latent), unit(unit), stores(stores) {}

  __device__ static const float* to_unit(const CombinerRowsBackward& a, int unit, int output) {
    return output < a.latents ? a.w_loc.place(output, unit) : a.w_scale.place(output - a.latents, unit);
  }
  __device__ static const float* from_unit(const CombinerRowsBackward& a, int latent, int unit) {
    return a.w_z.place(unit, latent);
  }
  __device__ void skip(const Row& row) const {
    if (stores) a.dz_q_0[int64_t{row.index} * a.latents + latent] = 0.0f;
  }

  __device__ void fetch(const Row& row, int step) {
    const int t = row.length - 1 - step;
    if (t < 0) return;
    if (latent < a.latents) {
      const Sequences<const float> all[] = {a.dz, a.dloc, a.dpre_scale, a.eps, a.pre_scale};
#pragma unroll
      for (int i = 0; i < 5; ++i) given[i] = *all[i].at(row.particle, row.sequence, t, latent);
    }
    if (unit < a.units) given[5] = a.g[(int64_t{row.index} * a.ragged.steps + t) * a.units + unit];
  }
  // Of dz, what goes to pre_scale and to eps.
  __device__ void prepare() {
    to_pre_scale_ = given[3] * sigmoid(given[4]);
    if (stores) to_eps_ = softplus(given[4]);
    half_slope_ = 0.5f * (1.0f - given[5] * given[5]);
  }
  __device__ void begin(const Row& row, int step, const float (&sums)[kSums], float* const (&at)[2]) {
    dz = sums[0];
    if (step == row.length) return;  // what is left is for z_q_0
    dz += given[0];
    *at[0] = dloc = given[1] + dz;
    *at[1] = dpre_scale = given[2] + dz * to_pre_scale_;
  }
  __device__ float make_unit(float sum) {
    dh = 0.5f * sum;
    return da = sum * half_slope_;
  }

  __device__ void store_latent(const Row& row, int step) const {
    if (!stores) return;
    if (step == row.length) {
      a.dz_q_0[int64_t{row.index} * a.latents + latent] = dz;
      return;
    }
    const int64_t at = int64_t{row.index} * a.ragged.steps + row.length - 1 - step;
    a.dout[at * 2 * a.latents + latent] = dloc;
    a.dout[at * 2 * a.latents + a.latents + latent] = dpre_scale;
    a.deps[at * a.latents + latent] = dz * to_eps_;
  }
  __device__ void store_unit(const Row& row, int step) const {
    if (unit >= a.units) return;
    const int64_t at = (int64_t{row.index} * a.ragged.steps + row.length - 1 - step) * a.units + unit;
    a.dh[at] = dh;
    a.da[at] = da;
  }

 private:
  float to_pre_scale_, to_eps_, half_slope_;
};

}  // namespace dmm::cuda
