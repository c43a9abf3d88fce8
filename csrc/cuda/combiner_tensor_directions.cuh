// The two directions of combiner_scan on tensor cores. Steps are counted in the order of computation; the step after a
// row's last one computes only latents.
//
// A thread has one latent of a row, and of each tile of the block's units two, of two rows.
#pragma once

#include "combiner_scan.cuh"
#include "tensor_tile.h"

namespace dmm::cuda {

// The latents of step s are z_{s-1}.
struct TensorForward {
  // The numbers of sums of a latent, of values computed from it, of its operands in device memory (base of loc and of
  // pre_scale, and eps), and of results per unit; and a flag for operands of units.
  static constexpr int kSums = 2, kMade = 1, kLatentOperands = 3, kResults = 1;
  static constexpr bool kHasUnitOperand = false;
  const CombinerTensor& a;

  __device__ float to_unit(int unit, int input) const { return a.w_z.at(unit, input); }
  __device__ float from_unit(int output, int unit) const {
    return (output % 2 ? a.w_scale : a.w_loc).at(output / 2, unit);
  }
  __device__ float constant(int unit) const { return a.b_z[unit]; }

  __device__ static int latent_time(const Row&, int step) { return step - 1; }
  __device__ static int unit_time(const Row&, int step) { return step; }
  // The address of an operand at time 0, and its stride in time.
  __device__ const float* latent_source(const Row& row, int latent, int i) const {
    if (i == 2) return a.eps.at(row.particle, row.sequence, 0, latent);
    return a.base + (int64_t{row.index} * a.ragged.steps * 2 + i) * a.latents + latent;
  }
  __device__ int64_t latent_stride(int i) const { return i == 2 ? a.eps.step : 2 * a.latents; }
  // Operands from which the first step computes z_{-1}.
  __device__ void begin_row(const Row& row, int latent, float* given) const {
    given[0] = *a.z_q_0.at(row.particle, row.sequence, 0, latent);
    given[kMostThreads] = given[2 * kMostThreads] = 0.0f;
  }

  struct Latent {
    float loc, pre_scale, eps, z;

    __device__ Latent(const Row&, int, const float (&given)[kLatentOperands])
        : loc(given[0]), pre_scale(given[1]), eps(given[2]) {}
    __device__ void make(const float (&sums)[kSums], float (&made)[kMade]) {
      loc += sums[0];
      pre_scale += sums[1];
      made[0] = z = fmaf(softplus(pre_scale), eps, loc);
    }
    __device__ void store(const TensorForward& direction, const Row& row, int step, int latent) const {
      if (step == 0 || step > row.length) return;
      const CombinerTensor& a = direction.a;
      const int64_t at = (int64_t{row.index} * a.ragged.steps + step - 1) * a.latents + latent;
      a.loc[at] = loc;
      a.pre_scale[at] = pre_scale;
      a.z[at] = z;
    }
  };

  __device__ static float make_unit(float sum, float b_z, float (&results)[kResults]) {
    results[0] = tanhf(sum + b_z);
    return 0.5f * results[0];
  }
  __device__ bool stores_units() const { return a.g != nullptr; }
  __device__ float* result(int) const { return a.g; }
  __device__ static const float* unit_operand() { return nullptr; }
};

// From the row's end back: the latents of step s are dloc and dpre_scale of t = length - 1 - s, which alternate among the
// inputs of the units.
struct TensorBackward {
  // Operands of a latent: dz, dloc, dpre_scale, eps, pre_scale; of a unit: g.
  static constexpr int kSums = 1, kMade = 2, kLatentOperands = 5, kResults = 2;
  static constexpr bool kHasUnitOperand = true;
  const CombinerTensorBackward& a;

  __device__ float to_unit(int unit, int input) const {
    return (input % 2 ? a.w_scale : a.w_loc).at(input / 2, unit);
  }
  __device__ float from_unit(int latent, int unit) const { return a.w_z.at(unit, latent); }
  __device__ static float constant(int) { return 0.0f; }

  __device__ static int latent_time(const Row& row, int step) { return row.length - 1 - step; }
  __device__ static int unit_time(const Row& row, int step) { return row.length - 1 - step; }
  __device__ const Sequences<const float>& sequences(int i) const {
    return i == 0 ? a.dz : i == 1 ? a.dloc : i == 2 ? a.dpre_scale : i == 3 ? a.eps : a.pre_scale;
  }
  __device__ const float* latent_source(const Row& row, int latent, int i) const {
    return sequences(i).at(row.particle, row.sequence, 0, latent);
  }
  __device__ int64_t latent_stride(int i) const { return sequences(i).step; }
  __device__ static void begin_row(const Row&, int, float*) {}

  struct Latent {
    float dz, dloc, dpre_scale, to_pre_scale, to_eps;  // the last two are the derivatives that multiply dz

    __device__ Latent(const Row& row, int step, const float (&given)[kLatentOperands])
        : dz(step == row.length ? 0.0f : given[0]),  // past the last step, the sums are the gradient of z_q_0
          dloc(given[1]),
          dpre_scale(given[2]),
          to_pre_scale(given[3] * sigmoid(given[4])),
          to_eps(softplus(given[4])) {}
    __device__ void make(const float (&sums)[kSums], float (&made)[kMade]) {
      dz += sums[0];
      made[0] = dloc += dz;
      made[1] = dpre_scale = fmaf(dz, to_pre_scale, dpre_scale);
    }
    __device__ void store(const TensorBackward& direction, const Row& row, int step, int latent) const {
      const CombinerTensorBackward& a = direction.a;
      if (step > row.length) return;
      if (step == row.length) {
        a.dz_q_0[int64_t{row.index} * a.latents + latent] = dz;
        return;
      }
      const int64_t at = int64_t{row.index} * a.ragged.steps + row.length - 1 - step;
      a.dout[at * 2 * a.latents + latent] = dloc;
      a.dout[at * 2 * a.latents + a.latents + latent] = dpre_scale;
      a.deps[at * a.latents + latent] = dz * to_eps;
    }
  };

  __device__ static float make_unit(float sum, float g, float (&results)[kResults]) {
    results[0] = 0.5f * sum;
    return results[1] = results[0] * (1.0f - g * g);
  }
  __device__ static bool stores_units() { return true; }
  __device__ float* result(int i) const { return i == 0 ? a.dh : a.da; }
  __device__ const float* unit_operand() const { return a.g; }
};

}  // namespace dmm::cuda
