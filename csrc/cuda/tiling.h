// How a block multiplies rows by its part of a weight matrix; matrix.cuh does it. Nothing of CUDA here.
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
constexpr int kMostRows = 32;      // of a cluster

struct Tiling {
  int inputs, outputs;  // of the block's part of the matrix, at most
  int groups;           // of four outputs
  int parts;            // that the inputs are dealt to; each gives partial sums
  int quads;            // of four inputs in a part
  int in_registers;     // quads whose weights are in registers
  int in_shared;        // and the next, in shared memory; the rest comes from device memory

  __host__ __device__ int groups_at_once() const { return groups < kMostThreads ? groups : kMostThreads; }
  __host__ __device__ int threads() const { return (groups_at_once() * parts + 31) / 32 * 32; }
  // Of a row, in numbers: every thread may read all its quads.
  __host__ __device__ int stride() const { return 4 * parts * quads; }
  __host__ __device__ int64_t partials() const { return int64_t{16} * parts * groups; }
  __host__ __device__ int64_t shared_weights(int threads) const { return int64_t{16} * in_shared * threads; }
};

static_assert(kChunk == 4, "partials() and Weights::multiply count on it");

}  // namespace dmm::cuda
