// How rnn_scan is cut up where outputs belong to warps (rnn_scan_warps.cuh): the sizes of its kernels, and what a block has
// in shared memory. Nothing of CUDA here.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace dmm::cuda {

constexpr int kWarpThreads = kMostThreads, kWarpsOfBlock = kWarpThreads / 32;  // two warps a scheduler
constexpr int kWarpChunk = 128;  // inputs, of which a lane has four
constexpr int kMostChunks = 16;  // of a state

struct WarpTile {
  int chunks;   // of inputs
  int outputs;  // of a warp
  int kept;     // chunks whose weights are in registers; the others' are in shared memory
  int rows;     // of a group

  __host__ __device__ constexpr int block_outputs() const { return kWarpsOfBlock * outputs; }
  __host__ __device__ constexpr int units() const { return kWarpChunk * chunks; }
  // Numbers of a group's state, of which a group has two.
  __host__ __device__ constexpr int state() const { return rows * units(); }
};

// Where what a block has in shared memory begins, in bytes: the rows, two barriers a group, where a thread reads and
// writes in device memory for each group, the weights that are not in registers, two states a group.
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
