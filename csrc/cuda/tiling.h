// How a block multiplies rows by its part of a weight matrix; matrix.cuh does it in float32, tensor_cores.cuh in tf32.
// Nothing of CUDA here.
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
constexpr int kChunk = 4;          // rows that are multiplied at once
constexpr int kTensorChunk = 16;   // on tensor cores
constexpr int kMostRows = 32;      // of a cluster

struct Tiling {
  int inputs, outputs;  // of the block's part of the matrix, at most
  int groups;           // of four outputs
  int parts;            // that the inputs are dealt to; each gives partial sums
  int quads;            // of four inputs in a part
  int in_registers;     // quads whose weights are in registers
  int in_shared;        // and the next, in shared memory; the rest comes from device memory
  // Not 0: a warp multiplies so many tiles of 16 outputs by tiles of 8 inputs, all its weights in registers. Groups
  // are then of 16 outputs, and quads of 8 inputs.
  int tensor_tiles;

  __host__ __device__ int chunk() const { return tensor_tiles ? kTensorChunk : kChunk; }
  // Of the partial sums of a row.
  __host__ __device__ int width() const { return (tensor_tiles ? 16 : 4) * groups; }
  __host__ __device__ int groups_at_once() const { return groups < kMostThreads ? groups : kMostThreads; }
  __host__ __device__ int threads() const {
    if (tensor_tiles) return (groups + tensor_tiles - 1) / tensor_tiles * parts * 32;
    return (groups_at_once() * parts + 31) / 32 * 32;
  }
  // Of a row, in numbers: every thread may read all its quads. On tensor cores a step of four banks from row to row
  // keeps the eight rows of a tile apart.
  __host__ __device__ int stride() const { return tensor_tiles ? 8 * parts * quads + 4 : 4 * parts * quads; }
  __host__ __device__ int64_t partials() const { return int64_t{chunk()} * parts * width(); }
  __host__ __device__ int64_t shared_weights(int threads) const { return int64_t{16} * in_shared * threads; }
};
static_assert(kChunk == 4, "Weights::multiply counts on it");

}  // namespace dmm::cuda
