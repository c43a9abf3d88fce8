// The product of eight rows in shared memory with a block's slice of a matrix, which is in the registers of its warps, on
// tensor cores in tf32.
#pragma once

#include "tensor_cores.cuh"
#include "tensor_tile.h"

namespace dmm::cuda {

// A warp has kTiles tiles of 16 outputs and all inputs, kSteps times eight: its weights are the left factors of
// mma.m16n8k8. The order of the inputs is arbitrary; in the one used here, the two elements that a lane needs for a step
// are adjacent.
template <int kTiles, int kSteps>
class TensorWeights {
 public:
  static constexpr int kStride = tensor_stride(kSteps);

  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  // Tiles are assigned to warps round-robin, so that warps with one more tile use different tensor cores.
  __device__ static int tile(int i) { return warp() + kWarpsOfBlock * i; }
  // The lane's row of a tile, and the position of its two elements in eight inputs or sums.
  __device__ static int quarter() { return static_cast<int>(threadIdx.x) % 32 / 4; }
  __device__ static int place() { return 2 * (static_cast<int>(threadIdx.x) % 4); }

  // `source(tile, is_lower, input)` is the weight of row quarter() of a tile, or of the row eight below.
  template <class Source>
  __device__ void bring(Source source) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          w_[i][step][k] = to_tf32(source(tile(i), k % 2 == 1, 8 * step + place() + k / 2));
      }
    }
  }

  // Multiplies the warp's first `tiles` tiles with `x` [8][kStride], which is already rounded. All lanes of a warp must call
  // this. A lane has the sums of rows place() and place() + 1 of x, first for row quarter() of a tile and then for the row
  // eight below.
  template <int kCount = kTiles>
  __device__ void multiply(int tiles, const float* x, float (&sums)[kTiles][4]) const {
    if constexpr (kCount > 0) {
      if (tiles < kCount) return multiply<kCount - 1>(tiles, x, sums);
      // A single tile uses two independent sums, to hide the latency of mma.
      constexpr int kChains = kCount == 1 && kSteps > 1 ? 2 : 1;
      float chains[kChains][kCount][4] = {};
      const float* const mine = x + quarter() * kStride + place();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const float2 two = *reinterpret_cast<const float2*>(mine + 8 * step);
        const float right[2] = {two.x, two.y};
#pragma unroll
        for (int i = 0; i < kCount; ++i) multiply_tiles(chains[step % kChains][i], w_[i][step], right);
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          sums[i][k] = chains[0][i][k];
          if constexpr (kChains > 1) sums[i][k] += chains[1][i][k];
        }
      }
    }
  }

 private:
  float w_[kTiles][kSteps][4];
};

}  // namespace dmm::cuda
