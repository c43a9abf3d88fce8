// The tiling of combiner_scan on tensor cores (combiner_tensor.cuh), and the shared memory layout of a block. This header
// is plain C++, without CUDA.
#pragma once

#include <cstdint>

#include "tiling.h"
#include "warp_tile.h"

namespace dmm::cuda {

constexpr int kTensorRows = 8;  // maximum rows per group, the columns of a tile
constexpr int kMostSlice = kMostThreads / kTensorRows;  // maximum latents per block, with one latent of a row per thread
constexpr int kMostTensorWeights = 255;                 // maximum weights per thread

struct TensorTile {
  int inputs, outputs;  // maximum sizes of the block's slice of the matrix
  int tiles;            // tiles of 16 outputs per warp
  int steps;            // steps of 8 inputs

  bool holds_all() const { return inputs <= 8 * steps && outputs <= 16 * kWarpsOfBlock * tiles; }
};

// The row stride of the factor that is multiplied in this many steps, in elements. A lane reads two elements at once and
// half a warp four rows; an offset of eight banks from row to row avoids conflicts.
__host__ __device__ constexpr int tensor_stride(int steps) { return 8 * steps + (40 - 8 * steps % 32) % 32; }

// The number of latents owned by a block of a cluster, a multiple of four so that one store has four of them. The last
// blocks may have fewer, or none.
__host__ __device__ constexpr int latent_slice(int latents, int blocks) {
  return ((latents + blocks - 1) / blocks + 3) / 4 * 4;
}

// Offsets in a block's shared memory, in floats: the rows, two barriers per group, two alternating buffers of units, and
// for each group the inputs of the units, the partial sums from all blocks, and prefetched operands of a step. There are
// `sums` per latent and `operands` per thread.
struct TensorLayout {
  static constexpr int kBarriers = 4 * kMostRows, kHidden = 2 * kBarriers;
  int groups;           // offset of the first group
  int inbox, operands;  // offsets within a group
  int group;            // stride from group to group

  __host__ __device__ TensorLayout(int input_steps, int unit_steps, int blocks, int slice, int sums, int operands_)
      : groups(kHidden + 2 * kTensorRows * tensor_stride(unit_steps)),
        inbox(kTensorRows * tensor_stride(input_steps)),
        operands(inbox + blocks * kTensorRows * slice * sums),
        group(operands + operands_ * kMostThreads) {}

  __host__ __device__ int64_t bytes(int count) const { return 4 * (groups + int64_t{count} * group); }
};

}  // namespace dmm::cuda
