// How combiner_scan is cut up where tensor cores multiply (combiner_tensor.cuh), and what a block has in shared memory.
// Nothing of CUDA here.
#pragma once

#include <cstdint>

#include "tiling.h"
#include "warp_tile.h"

namespace dmm::cuda {

constexpr int kTensorRows = 8;  // of a group, the columns of a tile
constexpr int kMostSlice = kMostThreads / kTensorRows;  // latents of a block: a thread has one of a row
constexpr int kMostTensorWeights = 255;                 // of a thread

struct TensorTile {
  int inputs, outputs;  // of the block's part of the matrix, at most
  int tiles;            // of 16 outputs, of a warp
  int steps;            // of 8 inputs

  bool holds_all() const { return inputs <= 8 * steps && outputs <= 16 * kWarpsOfBlock * tiles; }
};

// Numbers from row to row of what is multiplied in so many steps. A lane reads two numbers at once, and half a warp
// four rows: eight banks from row to row keep these apart.
__host__ __device__ constexpr int tensor_stride(int steps) { return 8 * steps + (40 - 8 * steps % 32) % 32; }

// Latents that a block of a cluster makes, a multiple of four so that four of them go in one store. The last blocks may
// have fewer, or none.
__host__ __device__ constexpr int latent_slice(int latents, int blocks) {
  return ((latents + blocks - 1) / blocks + 3) / 4 * 4;
}

// Where what a block has in shared memory begins, in numbers: the rows, two barriers a group, two buffers of units that
// take turns, and for each group what the units are made of, the sums that come from all blocks, and what comes from
// device memory for a step. `sums` are of a latent, `operands` numbers of a thread.
struct TensorLayout {
  static constexpr int kBarriers = 4 * kMostRows, kHidden = 2 * kBarriers;
  int groups;           // where that of the first group begins
  int inbox, operands;  // from there
  int group;            // from group to group

  __host__ __device__ TensorLayout(int input_steps, int unit_steps, int blocks, int slice, int sums, int operands_)
      : groups(kHidden + 2 * kTensorRows * tensor_stride(unit_steps)),
        inbox(kTensorRows * tensor_stride(input_steps)),
        operands(inbox + blocks * kTensorRows * slice * sums),
        group(operands + operands_ * kMostThreads) {}

  __host__ __device__ int64_t bytes(int count) const { return 4 * (groups + int64_t{count} * group); }
};

}  // namespace dmm::cuda
