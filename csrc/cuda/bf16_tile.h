// The tiling of rnn_scan in bf16 on tensor cores (rnn_scan_bf16.cuh): the template sizes of its kernels, and the shared
// memory layout of a block. This header is plain C++, without CUDA.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace dmm::cuda {

// A bundle of `parts` warps has `parts` tiles of 16 outputs. Each of its warps multiplies all these tiles for one part of
// the inputs, and owns one tile after the partial sums have been added (split-K). So a warp reads only a part of the
// state, and reuses it for several tiles of outputs.
struct Bf16Tile {
  int warps;      // warps per block
  int parts;      // parts of the inputs
  int depth;      // tiles of 16 inputs per part
  int kept;       // the first tiles of a part have weights in registers, the others in shared memory
  int row_tiles;  // tiles of 8 rows per group

  __host__ __device__ constexpr int threads() const { return 32 * warps; }
  __host__ __device__ constexpr int block_outputs() const { return 16 * warps; }
  __host__ __device__ constexpr int inputs() const { return 16 * depth * parts; }
  __host__ __device__ constexpr int rows() const { return 8 * row_tiles; }  // maximum rows per group
  // The row stride of a state, in bytes. It avoids bank conflicts when eight lanes read 16 bytes each from two rows.
  __host__ __device__ constexpr int stride() const { return (2 * inputs() + 63) / 128 * 128 + 64; }
  __host__ __device__ constexpr int state() const { return rows() * stride(); }  // bytes; a group has two states
};

// Partial sums of a tile of 16 outputs and 8 rows, in floats, padded to avoid bank conflicts when the lanes of a warp,
// which have sums of 8 outputs and of every other row, write them.
constexpr int kSumsOfRow = 20, kSumsOfTile = 8 * kSumsOfRow;

// Byte offsets in a block's shared memory: the rows, two barriers per group, the device memory offset of each row, the
// weights that are not in registers, two buffers of partial sums, two states per group.
struct Bf16Layout {
  int barriers, places, weights, sums, states, end;

  __host__ __device__ Bf16Layout(const Bf16Tile& tile, int rows, int groups, int places_of_row) {
    barriers = 16 * rows;
    places = barriers + 16 * groups;
    weights = (places + 8 * places_of_row * rows + 15) / 16 * 16;
    sums = weights + 512 * tile.warps * tile.parts * (tile.depth - tile.kept);
    states = sums + 2 * 4 * kSumsOfTile * tile.warps * tile.parts * tile.row_tiles;
    end = states + 2 * groups * tile.state();
  }
};

}  // namespace dmm::cuda
