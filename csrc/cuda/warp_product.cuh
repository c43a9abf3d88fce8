// Rows of a batch times outputs that belong to warps: a warp has four outputs or five, its lanes share the inputs, and
// shuffles add up what they made. No partial sum passes through shared memory, and no block barrier is needed.
//
// A lane keeps its weights in registers: of every 128 inputs ("chunk") the four from 4 * lane on. It numbers the first
// four outputs by itself: number 0 is the one whose sum it will hold, 1 to 3 are what it passes on. So the shuffles
// take and give the same registers in every lane, and nothing has to be chosen.
#pragma once

#include "cluster.cuh"

namespace dmm::cuda {

constexpr int kAllLanes = ~0;

// A lane's place in its warp.
struct Lane {
  int index = static_cast<int>(threadIdx.x) & 31;
  int output = index >> 3;  // of the warp's first four, whose sums it holds
  int among = index & 7;    // of the eight lanes that hold them
  int half = index >> 4;    // of two rows, the one whose fifth sum it holds
};

// A state of one row or two in shared memory. Two rows alternate, so that a lane's store of both is one of eight bytes;
// which four numbers are together makes a lane's load of 16 bytes free of bank conflicts.
template <int kChunks, int kRows>
struct WarpState {
  static constexpr int kUnits = 128 * kChunks;
  // The last numbers are where outputs go that are no units: nobody reads them.
  static constexpr int kNumbers = kRows * kUnits + 4;

  __device__ static int place(int unit, int row) {
    if (unit >= kUnits) return kRows * kUnits + row;
    if (kRows == 1) return unit;
    return unit / 128 * 256 + unit % 4 / 2 * 128 + unit % 128 / 4 * 4 + unit % 2 * 2 + row;
  }
  // The four inputs of a lane in a chunk.
  __device__ static void load(const float* state, int chunk, int lane, float (&in)[kRows][4]) {
    if constexpr (kRows == 1) {
      const float4 x = *reinterpret_cast<const float4*>(state + 128 * chunk + 4 * lane);
      in[0][0] = x.x, in[0][1] = x.y, in[0][2] = x.z, in[0][3] = x.w;
    } else {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float4 x = *reinterpret_cast<const float4*>(state + 256 * chunk + 128 * k + 4 * lane);
        in[0][2 * k] = x.x, in[1][2 * k] = x.y, in[0][2 * k + 1] = x.z, in[1][2 * k + 1] = x.w;
      }
    }
  }
};

template <int kChunks, int kOutputs>
class WarpWeights {
  static_assert(kOutputs == 4 || kOutputs == 5);

 public:
  // `source(output, input)` gives the warp's weights, zero where there is none.
  template <class Source>
  __device__ WarpWeights(const Lane& lane, const Source& source) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int o = 0; o < kOutputs; ++o)
          weights_[c][o][k] = source(o < 4 ? o ^ lane.output : o, 128 * c + 4 * lane.index + k);
  }

  // Adds a lane's products of a state to its sums.
  template <int kRows>
  __device__ void multiply(const Lane& lane, const float* state, float (&sums)[kRows][kOutputs]) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      float in[kRows][4];
      WarpState<kChunks, kRows>::load(state, c, lane.index, in);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int o = 0; o < kOutputs; ++o) sums[r][o] += weights_[c][o][k] * in[r][k];
    }
  }

 private:
  float weights_[kChunks][kOutputs][4];
};

// Adds up the lanes' sums. Each of the eight lanes of an output has its totals in number 0.
template <int kRows, int kOutputs>
__device__ void add_lanes(float (&sums)[kRows][kOutputs]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sums[r][0] += __shfl_xor_sync(kAllLanes, sums[r][2], 16);
    sums[r][1] += __shfl_xor_sync(kAllLanes, sums[r][3], 16);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) sums[r][0] += __shfl_xor_sync(kAllLanes, sums[r][1], 8);
#pragma unroll
  for (int lanes = 4; lanes > 0; lanes /= 2)
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r][0] += __shfl_xor_sync(kAllLanes, sums[r][0], lanes);
}

// The fifth output's total: of the only row, or of the row that is the lane's half.
template <int kRows>
__device__ float add_lanes_of_fifth(const Lane& lane, const float (&sums)[kRows][5]) {
  float mine = sums[0][4];
  if constexpr (kRows == 1) {
    mine += __shfl_xor_sync(kAllLanes, mine, 16);
  } else {
    const float other = lane.half ? sums[0][4] : sums[1][4];
    mine = (lane.half ? sums[1][4] : sums[0][4]) + __shfl_xor_sync(kAllLanes, other, 16);
  }
#pragma unroll
  for (int lanes = 8; lanes > 0; lanes /= 2) mine += __shfl_xor_sync(kAllLanes, mine, lanes);
  return mine;
}

}  // namespace dmm::cuda
