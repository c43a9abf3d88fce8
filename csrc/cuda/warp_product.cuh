// Rows of a batch times outputs that belong to warps: a warp has four outputs, its lanes share the inputs, and shuffles
// add up what they made. No partial sum passes through shared memory.
//
// A lane keeps its weights in registers: of every 128 inputs ("chunk") the four from 4 * lane on. It numbers the outputs
// by itself, and the rows where there are two: number 0 is the one whose sum it will hold, the others are what it passes
// on. So the shuffles take and give the same registers in every lane, and nothing has to be chosen.
#pragma once

#include "cluster.cuh"

namespace dmm::cuda {

constexpr int kAllLanes = ~0;

// A lane's place in its warp.
struct Lane {
  int index;
  int output;  // of the warp's four, whose sum it holds
  int row;     // of two, whose sum it holds
  int among;   // of the four lanes that hold it

  __device__ explicit Lane(int thread) : index(thread & 31), output(index >> 3), row(index >> 2 & 1), among(index & 3) {}
};

template <int kChunks>
class WarpWeights {
 public:
  // `source(output, input)` gives the warp's weights, zero where there is none.
  template <class Source>
  __device__ WarpWeights(const Lane& lane, const Source& source) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int o = 0; o < 4; ++o) weights_[c][o][k] = source(o ^ lane.output, 128 * c + 4 * lane.index + k);
  }

  // Adds a lane's products of rows to its sums: of each row a chunk's four inputs, and then every 128 numbers the next.
  template <int kRows>
  __device__ void multiply(const float* const (&rows)[kRows], float (&sums)[kRows][4]) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(rows[r] + 128 * c);
        const float in[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int o = 0; o < 4; ++o) sums[r][o] += weights_[c][o][k] * in[k];
      }
    }
  }

 private:
  float weights_[kChunks][4][4];
};

// Adds up the lanes' sums of one row or two: the total of the lane's output and row.
template <int kRows>
__device__ float add_lanes(const float (&sums)[kRows][4]) {
  float four[4];
#pragma unroll
  for (int o = 0; o < 4; ++o)
    four[o] = kRows > 1 ? sums[0][o] + __shfl_xor_sync(kAllLanes, sums[kRows - 1][o], 4) : sums[0][o];
  const float first = four[0] + __shfl_xor_sync(kAllLanes, four[2], 16);
  const float second = four[1] + __shfl_xor_sync(kAllLanes, four[3], 16);
  float sum = first + __shfl_xor_sync(kAllLanes, second, 8);
  if (kRows == 1) sum += __shfl_xor_sync(kAllLanes, sum, 4);
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  return sum + __shfl_xor_sync(kAllLanes, sum, 1);
}

}  // namespace dmm::cuda
