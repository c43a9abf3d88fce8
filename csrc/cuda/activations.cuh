// Softplus and its derivative, branch-free and with short dependency chains, since the latency of a scan's step depends
// on them.
#pragma once

#include "cluster.cuh"

namespace dmm::cuda {

// The hardware's approximations of 2^x and of a quotient, accurate to two units in the last place.
#ifdef DMM_EMULATOR
inline float power_of_two(float x) { return exp2f(x); }
inline float quotient(float x, float y) { return x / y; }
#else
__device__ inline float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
__device__ inline float quotient(float x, float y) { return __fdividef(x, y); }
#endif

// e^-|x|; unspecified for NaN. A factor corrects the rounding of the exponent.
__device__ inline float exp_of_minus(float x) {
  constexpr float kLog2E = 1.44269502162933349609375f, kRestOfLog2E = 1.925963033500011079e-08f;
  const float negative = -fminf(fabsf(x), 100.0f), exponent = negative * kLog2E;
  const float rest = fmaf(negative, kRestOfLog2E, fmaf(negative, kLog2E, -exponent));
  const float power = power_of_two(exponent);
  return fmaf(power, rest * 0.693147182464599609375f, power);
}

// log(1 + u) / u for u in [0, 1], by a polynomial with an error of 5e-9.
__device__ inline float log1p_over(float u) {
  const float u2 = u * u, u4 = u2 * u2;
  const float c01 = fmaf(u, -0.4999993145465851f, 1.0f);
  const float c23 = fmaf(u, -0.24958586692810059f, 0.33330512046813965f);
  const float c45 = fmaf(u, -0.15355394780635834f, 0.19695399701595306f);
  const float c67 = fmaf(u, -0.057664427906274796f, 0.10680554062128067f);
  const float c89 = fmaf(u, -0.0033184699714183807f, 0.0202045738697052f);
  const float c0123 = fmaf(u2, c23, c01), c4567 = fmaf(u2, c67, c45);
  return fmaf(u4, fmaf(u4, c89, c4567), c0123);
}

// Propagates NaN by comparisons, unlike a maximum.
__device__ inline float softplus(float x) {
  const float u = exp_of_minus(x);
  return fmaf(u, log1p_over(u), x < 0.0f ? 0.0f : x);
}
__device__ inline float sigmoid(float x) {
  const float u = exp_of_minus(x);
  return quotient(x < 0.0f ? u : x >= 0.0f ? 1.0f : x, 1.0f + u);
}

}  // namespace dmm::cuda
