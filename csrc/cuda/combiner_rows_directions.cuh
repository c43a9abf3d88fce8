// The two directions of combiner_scan for the kernels that process one or two rows at a time. A thread has one latent and
// one unit, or none; it stores its results to device memory after the data that other blocks wait for has been sent. Steps
// are counted in the order of computation; the step after a row's last one computes only latents.
//
// Operands are the values that a thread reads from device memory for a step.
#pragma once

#include "combiner_scan.cuh"
#include "lane_weights.cuh"

namespace dmm::cuda {

// The operands of a thread in shared memory.
struct Operands {
  float* first;

  __device__ float& operator[](int i) const { return first[i * kMostThreads]; }
};

// The latents of step s are z_{s-1}.
struct RowsForward {
  // Operands of a latent: base of loc and of pre_scale, and eps.
  static constexpr int kSums = 2, kLatentOperands = 3, kOperands = 3;
  const CombinerRows& a;
  const int latent, unit;
  const bool stores;  // this block stores the latent
  float b_z, loc, pre_scale, z, g;

  __device__ RowsForward(const CombinerRows& a, int latent, int unit, bool stores)
      : a(a), latent(latent), unit(unit), stores(stores), b_z(unit < a.units ? a.b_z[unit] : 0.0f) {}

  // The index among the units' inputs of the first or second value computed from a latent; here there is only one.
  __device__ static int input(int latent, int) { return latent; }
  // The location of a lane's weights.
  __device__ static WeightLine to_unit(const CombinerRows& a, int unit, int part) {
    return {a.w_z.place(unit, part), kLaneParts * a.w_z.column};
  }
  __device__ static WeightLine from_unit(const CombinerRows& a, int output, int unit) {
    const Matrix& w = output % 2 ? a.w_scale : a.w_loc;
    return {w.place(output / 2, unit), kLaneParts * w.column};
  }
  // Handles the steps that are not computed.
  __device__ void skip(const Row&) const {}

  // The address of an operand at time 0, and its stride in time.
  __device__ const float* operand(const Row& row, int i) const {
    if (i == 2) return a.eps.at(row.particle, row.sequence, 0, latent);
    return a.base + int64_t{row.index} * a.ragged.steps * 2 * a.latents + i * a.latents + latent;
  }
  __device__ int64_t operand_stride(int i) const { return i == 2 ? a.eps.step : 2 * a.latents; }
  __device__ static int time(const Row&, int step) { return step - 1; }
  // Operands from which the first step computes z_{-1}.
  __device__ void begin_row(const Row& row, const Operands& first) const {
    if (latent >= a.latents) return;
    first[0] = *a.z_q_0.at(row.particle, row.sequence, 0, latent);
    first[1] = first[2] = 0.0f;
  }
  __device__ void prepare(const Row&, int, const Operands& given) {
    loc = given[0];
    pre_scale = given[1];
    eps_ = given[2];
  }
  // `at` are the destinations of the results in the vector that is multiplied.
  __device__ void begin(const float (&sums)[kSums], float* const (&at)[2]) {
    loc += sums[0];
    pre_scale += sums[1];
    *at[0] = z = fmaf(softplus(pre_scale), eps_, loc);
  }
  __device__ float make_unit(float sum) {
    g = tanhf(sum + b_z);
    return 0.5f * g;
  }

  __device__ void store_latent(const Row& row, int step) const {
    if (!stores || step == 0 || step > row.length) return;
    const int64_t at = (int64_t{row.index} * a.ragged.steps + step - 1) * a.latents + latent;
    a.loc[at] = loc;
    a.pre_scale[at] = pre_scale;
    a.z[at] = z;
  }
  __device__ void store_unit(const Row& row, int step) const {
    if (a.g == nullptr || unit >= a.units || step >= row.length) return;
    a.g[(int64_t{row.index} * a.ragged.steps + step) * a.units + unit] = g;
  }

 private:
  float eps_;
};

// From the row's end back: the latents of step s are dloc and dpre_scale of t = length - 1 - s.
struct RowsBackward {
  // Operands of a latent: dz, dloc, dpre_scale, eps, pre_scale; of a unit: g.
  static constexpr int kSums = 1, kLatentOperands = 5, kOperands = 6;
  const CombinerRowsBackward& a;
  const int latent, unit;
  const bool stores;
  float dz, dloc, dpre_scale, dh, da;

  __device__ RowsBackward(const CombinerRowsBackward& a, int latent, int unit, bool stores)
      : a(a), latent(latent), unit(unit), stores(stores) {}

  // dloc and dpre_scale alternate among the inputs, so that each lane has only one of the two kinds.
  __device__ static int input(int latent, int i) { return 2 * latent + i; }
  __device__ static WeightLine to_unit(const CombinerRowsBackward& a, int unit, int part) {
    const Matrix& w = part % 2 ? a.w_scale : a.w_loc;
    return {w.place(part / 2, unit), kLaneParts / 2 * w.row};
  }
  __device__ static WeightLine from_unit(const CombinerRowsBackward& a, int latent, int unit) {
    return {a.w_z.place(unit, latent), kLaneParts * a.w_z.row};
  }
  __device__ void skip(const Row& row) const {
    if (stores && row.length == 0) a.dz_q_0[int64_t{row.index} * a.latents + latent] = 0.0f;
  }

  __device__ const float* operand(const Row& row, int i) const {
    if (i == 5) return a.g + int64_t{row.index} * a.ragged.steps * a.units + unit;
    return sequences(i).at(row.particle, row.sequence, 0, latent);
  }
  __device__ int64_t operand_stride(int i) const { return i == 5 ? a.units : sequences(i).step; }
  __device__ static int time(const Row& row, int step) { return row.length - 1 - step; }
  __device__ void begin_row(const Row&, const Operands&) const {}
  // docs-begin: backward step
  // Prepares the derivatives by which dz contributes to pre_scale and eps.
  __device__ void prepare(const Row& row, int step, const Operands& given) {
    half_slope_ = 0.5f * (1.0f - given[5] * given[5]);
    dz = step == row.length ? 0.0f : given[0];  // past the last step, the sums are the gradient of z_q_0
    dloc = given[1];
    dpre_scale = given[2];
    to_pre_scale_ = given[3] * sigmoid(given[4]);
    to_eps_ = softplus(given[4]);
  }
  __device__ void begin(const float (&sums)[kSums], float* const (&at)[2]) {
    dz += sums[0];
    *at[0] = dloc += dz;
    *at[1] = dpre_scale = fmaf(dz, to_pre_scale_, dpre_scale);
  }
  __device__ float make_unit(float sum) {
    dh = 0.5f * sum;
    return da = sum * half_slope_;
  }
  // docs-end: backward step

  __device__ void store_latent(const Row& row, int step) const {
    if (!stores || step > row.length) return;
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
    if (unit >= a.units || step >= row.length) return;
    const int64_t at = (int64_t{row.index} * a.ragged.steps + row.length - 1 - step) * a.units + unit;
    a.dh[at] = dh;
    a.da[at] = da;
  }

 private:
  __device__ const Sequences<const float>& sequences(int i) const {
    return i == 0 ? a.dz : i == 1 ? a.dloc : i == 2 ? a.dpre_scale : i == 3 ? a.eps : a.pre_scale;
  }

  float to_pre_scale_, to_eps_, half_slope_;
};

}  // namespace dmm::cuda
