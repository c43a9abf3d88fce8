// How the threads of a block share a matrix that lies in their registers. Nothing of CUDA here.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace dmm::cuda {

constexpr int kLaneParts = 8;  // lanes next to one another share all inputs of some outputs
constexpr int kLaneGroups = kMostThreads / kLaneParts;
constexpr int kGivenAtOnce = 2;  // sums next to one another that a lane gives to another block in one store

// The inputs are dealt to eight lanes, which read their own one after another from shared memory, four at a time. An odd
// number of fours from lane to lane keeps the eight apart on the banks.
__host__ __device__ constexpr int lane_stride(int lane_inputs) { return 4 * (((lane_inputs + 3) / 4) | 1); }
// Where a number of the vector that is multiplied lies.
__host__ __device__ constexpr int lane_place(int lane_inputs, int input) {
  return input % kLaneParts * lane_stride(lane_inputs) + input / kLaneParts;
}

struct LaneTile {
  int inputs, outputs;  // of the block's part of the matrix, at most
  int lane_inputs;      // of a lane
  int group_outputs;    // of eight lanes

  __host__ __device__ int groups() const { return (outputs + group_outputs - 1) / group_outputs; }
  // Floats of a block's results, with padding that is never read.
  __host__ __device__ int width() const { return kLaneGroups * group_outputs; }
  __host__ __device__ int vector() const { return kLaneParts * lane_stride(lane_inputs); }
  bool holds_all() const { return inputs <= kLaneParts * lane_inputs && groups() <= kLaneGroups; }
};

}  // namespace dmm::cuda
