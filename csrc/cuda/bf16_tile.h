// How rnn_scan is cut up where tensor cores multiply numbers in bf16 (rnn_scan_bf16.cuh): the sizes of its kernels, and
// what a block has in shared memory. Nothing of CUDA here.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace dmm::cuda {

// A bundle of `parts` warps has as many tiles of 16 outputs. Each of its warps multiplies all these by a part of the
// inputs, and has one of the tiles for itself once the partial sums are added up. So a warp reads the state of only a
// part of the inputs, and uses what it has read for several tiles of outputs.
struct Bf16Tile {
  int warps;      // of a block
  int parts;      // that the inputs are dealt to
  int depth;      // of a part, in tiles of 16 inputs
  int kept;       // of these the first ones, whose weights are in registers; the others' are in shared memory
  int row_tiles;  // of 8 rows each, in a group

  __host__ __device__ constexpr int threads() const { return 32 * warps; }
  __host__ __device__ constexpr int block_outputs() const { return 16 * warps; }
  __host__ __device__ constexpr int inputs() const { return 16 * depth * parts; }
  __host__ __device__ constexpr int rows() const { return 8 * row_tiles; }  // of a group, at most
  // From row to row of a state, in bytes. Eight lanes that read 16 bytes each, of two rows, then find them in different
  // banks.
  __host__ __device__ constexpr int stride() const { return (2 * inputs() + 63) / 128 * 128 + 64; }
  __host__ __device__ constexpr int state() const { return rows() * stride(); }  // of a group, in bytes; it has two
};

// Partial sums of a tile of 16 outputs and 8 rows, in floats. Lanes of a warp, which have sums of 8 outputs and of
// every other row, then write them to different banks.
constexpr int kSumsOfRow = 20, kSumsOfTile = 8 * kSumsOfRow;

// Where what a block has in shared memory begins, in bytes: the rows, two barriers a group, where each row begins in
// device memory, the weights that are not in registers, two buffers of partial sums, two states a group.
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
