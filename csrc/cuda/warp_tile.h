// The tiling of rnn_scan with outputs by warps (rnn_scan_warps.cuh): the template sizes of its kernels, and the shared
// memory layout of a block. This header is plain C++, without CUDA.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace dmm::cuda {

constexpr int kWarpThreads = kMostThreads, kWarpsOfBlock = kWarpThreads / 32;  // two warps per scheduler
constexpr int kWarpChunk = 128;  // inputs of a chunk, four per lane
constexpr int kMostChunks = 16;  // maximum chunks of a state

struct WarpTile {
  int chunks;   // chunks of inputs
  int outputs;  // outputs per warp
  int kept;     // chunks with weights in registers; the others are in shared memory
  int rows;     // rows per group

  __host__ __device__ constexpr int block_outputs() const { return kWarpsOfBlock * outputs; }
  __host__ __device__ constexpr int units() const { return kWarpChunk * chunks; }
  // The number of elements of a group's state; a group has two states.
  __host__ __device__ constexpr int state() const { return rows * units(); }
};

// Byte offsets in a block's shared memory: the rows, two barriers per group, the device memory pointers of each thread for
// each group, the weights that are not in registers, two states per group.
struct WarpLayout {
  int barriers, places, weights, states, end;

  __host__ __device__ WarpLayout(const WarpTile& tile, int rows, int places_of_thread) {
    const int groups = (rows + tile.rows - 1) / tile.rows;
    barriers = 16 * rows;
    places = barriers + 16 * groups;
    weights = places + 8 * places_of_thread * groups * kWarpThreads;
    states = weights + 16 * tile.outputs * (tile.chunks - tile.kept) * kWarpThreads;
    end = states + 8 * tile.state() * groups;
  }
};

}  // namespace dmm::cuda
