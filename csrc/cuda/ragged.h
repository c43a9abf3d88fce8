// Sequences in memory. This header is plain C++, without CUDA.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace dmm::cuda {

// [P, B, T, W] with any strides, or [P, B, W] with none for T.
template <class S>
struct Sequences {
  S* data;
  int64_t particle, sequence, step, column;

  __host__ __device__ S* at(int p, int b, int64_t t, int64_t w) const {
    return data + p * particle + b * sequence + t * step + w * column;
  }
};

// True if four columns from a multiple of four on are contiguous and aligned, so that one load can read them.
inline bool goes_by_fours(const Sequences<const float>& s) {
  const int64_t all = reinterpret_cast<intptr_t>(s.data) / 4 | s.particle | s.sequence | s.step;
  return s.column == 1 && all % 4 == 0;
}

// [rows, columns] with any strides.
struct Matrix {
  const float* data;
  int64_t row, column;

  __host__ __device__ const float* place(int64_t r, int64_t c) const { return data + r * row + c * column; }
  __host__ __device__ float at(int64_t r, int64_t c) const { return *place(r, c); }
};

// The rows of a batch, and their distribution over clusters.
struct Ragged {
  const int64_t* lengths;  // [B]
  int64_t lengths_stride;
  int particles, sequences, steps;  // P, B, T
  int rows_per_cluster;
  int rows_per_group;  // rows processed together in a step, at most kChunk
  int first_cluster;   // the first cluster of the launch; earlier ones belong to earlier launches

  __host__ __device__ int rows() const { return particles * sequences; }
  __host__ __device__ int groups() const { return (rows_per_cluster + rows_per_group - 1) / rows_per_group; }
  __host__ __device__ int clusters() const { return (rows() + rows_per_cluster - 1) / rows_per_cluster; }
};

}  // namespace dmm::cuda
