// The product of rows with a weight matrix whose outputs belong to warps: a warp has kOutputs outputs, its lanes split the
// inputs, and shuffles reduce their sums. No partial sums pass through shared memory.
//
// Inputs are divided into chunks of 128, of which a lane has the four from 4 * lane on. Its weights of the first kKept
// chunks are in registers, and those of the others in shared memory.
#pragma once

#include "cluster.cuh"
#include "warp_tile.h"

namespace dmm::cuda {

constexpr unsigned kAllLanes = ~0u;

template <int kChunks, int kKept, int kOutputs>
class WarpWeights {
 public:
  // Loads the weights of the warp's first `outputs` outputs and `inputs` inputs; all others are zero. The weight of output o
  // and input i is at from[o * next_output + i * next_input]. `shared` has space for the weights of WarpLayout.
  __device__ WarpWeights(float* shared, const float* from, int64_t next_output, int64_t next_input, int outputs, int inputs)
      : shared_(reinterpret_cast<float4*>(shared) + threadIdx.x) {
    const int first = 4 * (static_cast<int>(threadIdx.x) % 32);
    from += first * next_input;
    inputs -= first;
    // Those in shared memory first, four at a time.
#pragma unroll 1
    for (int i = 0; i < (kChunks - kKept) * kOutputs; ++i) {
      const int c = kKept + i / kOutputs, o = i % kOutputs;
      float w[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int input = kWarpChunk * c + k;
        w[k] = o < outputs && input < inputs ? from[o * next_output + input * next_input] : 0.0f;
      }
      *place(c, o) = float4{w[0], w[1], w[2], w[3]};
    }
#pragma unroll
    for (int c = 0; c < kKept; ++c)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int input = kWarpChunk * c + k;
        const float* at = from + input * next_input;
#pragma unroll
        for (int o = 0; o < kOutputs; ++o, at += next_output)
          kept_[c][o][k] = o < outputs && input < inputs ? *at : 0.0f;
      }
  }

  // Computes the lane's partial sums of kRows rows; row r and output o has index r * kOutputs + o. `x` is
  // [kRows][kChunks * 128].
  template <int kRows>
  __device__ void multiply(const float* x, float (&sums)[kRows * kOutputs]) const {
    const float* const mine = x + 4 * (static_cast<int>(threadIdx.x) % 32);
#pragma unroll
    for (int c = 0; c < kKept; ++c)
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4 in = *reinterpret_cast<const float4*>(mine + (r * kChunks + c) * kWarpChunk);
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) add(kept_[c][o], in, sums[r * kOutputs + o]);
      }
    // Not unrolled: with so many concurrent loads, weights would be spilled from registers.
#pragma unroll 1
    for (int c = kKept; c < kChunks; ++c) {
      float4 in[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        in[r] = *reinterpret_cast<const float4*>(mine + (r * kChunks + c) * kWarpChunk);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const float4 w = *place(c, o);
        const float weights[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int r = 0; r < kRows; ++r) add(weights, in[r], sums[r * kOutputs + o]);
      }
    }
  }

 private:
  __device__ float4* place(int chunk, int output) const {
    return shared_ + ((chunk - kKept) * kOutputs + output) * kWarpThreads;
  }
  __device__ static void add(const float (&weights)[4], const float4& in, float& sum) {
    sum += weights[0] * in.x;
    sum += weights[1] * in.y;
    sum += weights[2] * in.z;
    sum += weights[3] * in.w;
  }

  float4* const shared_;
  float kept_[kKept][kOutputs][4];
};

// docs-begin: lane sums
// Reduces kCount sums, at most 32, over the lanes of a warp. Each lane returns one complete sum: two lanes that differ in bit
// kBit split their sums between them, and both keep an odd one. `summed` is set to the index of the returned sum.
template <int kCount, int kBit = 16, int kAll>
__device__ float add_lanes(float (&sums)[kAll], int lane) {
  constexpr int kHalf = (kCount + 1) / 2;
  const bool is_upper = lane & kBit;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const int other = i + kHalf < kCount ? i + kHalf : i;
    const float passed = is_upper ? sums[i] : sums[other];
    sums[i] = (is_upper ? sums[other] : sums[i]) + __shfl_xor_sync(kAllLanes, passed, kBit);
  }
  if constexpr (kBit > 1) return add_lanes<kHalf, kBit / 2>(sums, lane);
  else return sums[0];
}
// docs-end: lane sums

struct Summed {
  int number;    // the index of the lane's sum
  bool is_first;  // the first of the lanes that have this sum
};
template <int kCount, int kBit = 16>
__device__ Summed summed(int lane) {
  static_assert(kCount <= 2 * kBit);
  constexpr int kHalf = (kCount + 1) / 2;
  Summed sum{0, true};
  if constexpr (kBit > 1) sum = summed<kHalf, kBit / 2>(lane);
  if (lane & kBit) {
    if (sum.number + kHalf < kCount) sum.number += kHalf;
    else sum.is_first = false;
  }
  return sum;
}

}  // namespace dmm::cuda
