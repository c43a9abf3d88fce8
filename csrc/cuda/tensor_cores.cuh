// The product of rows with a block's slice of a weight matrix on tensor cores, in tf32 with float32 sums.
//
// A warp has kTiles tiles of 16 outputs and one part of the inputs, kQuads tiles of 8, and keeps their weights in
// registers, as the left factors of mma.m16n8k8; the right factors are 8 rows of the batch.
#pragma once

#include "cluster.cuh"
#include "tiling.h"

namespace dmm::cuda {

#ifdef DMM_EMULATOR
inline float to_tf32(float x) { return emulator::to_tf32(x); }
inline void multiply_tiles(float (&sums)[4], const float (&w)[4], const float (&x)[2]) {
  emulator::multiply_tiles(sums, w, x);
}
#else
__device__ inline float to_tf32(float x) {
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return __uint_as_float(rounded);
}
// sums [16, 8] += w [16, 8] x [8, 8], spread over the lanes of a warp.
__device__ inline void multiply_tiles(float (&sums)[4], const float (&w)[4], const float (&x)[2]) {
  // Volatile, since all lanes have to execute it: the compiler must not move it into a branch that only some lanes take.
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(__float_as_uint(w[0])), "r"(__float_as_uint(w[1])), "r"(__float_as_uint(w[2])),
        "r"(__float_as_uint(w[3])), "r"(__float_as_uint(x[0])), "r"(__float_as_uint(x[1])));
}
#endif

// `Source` returns the weight of an output and an input of the block's slice, zero outside of the matrix.
template <int kTiles, int kQuads, class Source>
class TensorCoreWeights {
 public:
  __device__ TensorCoreWeights(const Tiling& tiling, float*, const Source& source) : tiling_(tiling) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    part_ = warp % tiling.parts;
    first_tile_ = warp / tiling.parts * kTiles;
    quarter_ = lane / 4;
    place_ = lane % 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k)  // the order of mma's operand: 8 outputs further, then 4 inputs further
          w_[tile][i][k] = to_tf32(source(16 * (first_tile_ + tile) + quarter_ + 8 * (k % 2), input(i) + 4 * (k / 2)));
      }
    }
  }

  // Computes partial sums of up to kTensorChunk rows, `x` [rows][stride], where x must be zero past the inputs.
  __device__ void multiply(int rows, const float* x, float* partials) const {
    for (int row = 0; row < rows; row += 8) multiply_rows(rows, row, x, partials);
  }

 private:
  __device__ int input(int i) const { return 8 * (i * tiling_.parts + part_) + place_; }

  __device__ void multiply_rows(int rows, int first, const float* x, float* partials) const {
    const int row = first + quarter_;
    const float* const at = x + row * tiling_.stride();
    float sums[kTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      float right[2] = {};
      if (row < rows) {
        right[0] = to_tf32(at[input(i)]);
        right[1] = to_tf32(at[input(i) + 4]);
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) multiply_tiles(sums[tile], w_[tile][i], right);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (first_tile_ + tile >= tiling_.groups) continue;
      const int output = 16 * (first_tile_ + tile) + quarter_;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int to = first + 2 * place_ + k % 2;
        if (to < rows) partials[(part_ * rows + to) * tiling_.width() + output + 8 * (k / 2)] = sums[tile][k];
      }
    }
  }

  const Tiling& tiling_;
  int part_, first_tile_, quarter_, place_;
  float w_[kTiles][kQuads][4];
};

}  // namespace dmm::cuda
