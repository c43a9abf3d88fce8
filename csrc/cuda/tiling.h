// The tiling of a block's product of rows with its slice of a weight matrix, in float32 (matrix.cuh) or tf32
// (tensor_cores.cuh). This header is plain C++, without CUDA.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#ifndef __host__
#define __host__
#define __device__
#endif
#endif

namespace dmm::cuda {

constexpr int kMostThreads = 256;  // so that each may have 255 registers
constexpr int kChunk = 4;          // rows multiplied at once
constexpr int kTensorChunk = 16;   // the same on tensor cores
constexpr int kMostRows = 32;      // maximum rows per cluster

struct Tiling {
  int inputs, outputs;  // maximum sizes of the block's slice of the matrix
  int groups;           // groups of four outputs
  int parts;            // parts of the inputs, each with partial sums
  int quads;            // quads of four inputs per part
  int in_registers;     // quads with weights in registers
  int in_shared;        // further quads with weights in shared memory; all others are read from device memory
  // If not 0, the number of tiles of 16 outputs per warp on tensor cores, with all weights in registers. Groups then have
  // 16 outputs, and quads 8 inputs.
  int tensor_tiles;

  __host__ __device__ int chunk() const { return tensor_tiles ? kTensorChunk : kChunk; }
  // The number of partial sums of a row.
  __host__ __device__ int width() const { return (tensor_tiles ? 16 : 4) * groups; }
  __host__ __device__ int groups_at_once() const { return groups < kMostThreads ? groups : kMostThreads; }
  __host__ __device__ int threads() const {
    if (tensor_tiles) return (groups + tensor_tiles - 1) / tensor_tiles * parts * 32;
    return (groups_at_once() * parts + 31) / 32 * 32;
  }
  // The row stride of the factor, in elements, so that every thread can read all its quads. On tensor cores an offset of
  // four banks from row to row avoids conflicts between the eight rows of a tile.
  __host__ __device__ int stride() const { return tensor_tiles ? 8 * parts * quads + 4 : 4 * parts * quads; }
  __host__ __device__ int64_t partials() const { return int64_t{chunk()} * parts * width(); }
  __host__ __device__ int64_t shared_weights(int threads) const { return int64_t{16} * in_shared * threads; }
};
static_assert(kChunk == 4, "Weights::multiply relies on it");

}  // namespace dmm::cuda
