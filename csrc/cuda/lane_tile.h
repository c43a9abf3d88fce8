// The distribution of a matrix over the registers of a block's threads. This header is plain C++, without CUDA.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace dmm::cuda {

constexpr int kLaneParts = 8;  // adjacent lanes split the inputs of some outputs among them
constexpr int kLaneGroups = kMostThreads / kLaneParts;
constexpr int kGivenAtOnce = 2;  // adjacent sums that a lane sends to another block in one store

// The inputs are dealt round-robin to eight lanes (input i to lane i % 8); each lane reads its own from shared memory four
// at a time. The stride from lane to lane is an odd number of float4, which avoids bank conflicts.
__host__ __device__ constexpr int lane_stride(int lane_inputs) { return 4 * (((lane_inputs + 3) / 4) | 1); }
// The offset of an input in the vector that is multiplied.
__host__ __device__ constexpr int lane_place(int lane_inputs, int input) {
  return input % kLaneParts * lane_stride(lane_inputs) + input / kLaneParts;
}

struct LaneTile {
  int inputs, outputs;  // maximum sizes of the block's slice of the matrix
  int lane_inputs;      // inputs per lane
  int group_outputs;    // outputs per group of eight lanes

  __host__ __device__ int groups() const { return (outputs + group_outputs - 1) / group_outputs; }
  // The number of floats of a block's results, including padding that is never read.
  __host__ __device__ int width() const { return kLaneGroups * group_outputs; }
  __host__ __device__ int vector() const { return kLaneParts * lane_stride(lane_inputs); }
  bool holds_all() const { return inputs <= kLaneParts * lane_inputs && groups() <= kLaneGroups; }
};

}  // namespace dmm::cuda
