// The product of rows with a bundle's slice of a weight matrix on tensor cores, in bf16 with float32 sums
// (mma.m16n8k16). The left factor has 16 outputs, the right one 8 rows.
//
// The order of the inputs within a tile is arbitrary if it is the same in both factors: here a lane's four inputs of a
// tile are adjacent, and so are its eight inputs of two tiles, so that one load reads them from the state. If the number
// of tiles is odd, the first one is processed separately.
#pragma once

#include "bf16_tile.h"
#include "cluster.cuh"

namespace dmm::cuda {

#ifdef DMM_EMULATOR
inline uint32_t pack_bf16(float low, float high) { return emulator::pack_bf16(low, high); }
inline void multiply_tiles_bf16(float (&sums)[4], const uint32_t (&w)[4], const uint32_t (&x)[2]) {
  emulator::multiply_tiles_bf16(sums, w, x);
}
#else
// Two numbers rounded to nearest even, with the first in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// docs-begin: mma
// sums [16, 8] += w [16, 16] x [16, 8], spread over the lanes of a warp.
__device__ inline void multiply_tiles_bf16(float (&sums)[4], const uint32_t (&w)[4], const uint32_t (&x)[2]) {
  // Volatile, as in tensor_cores.cuh: all lanes have to execute it.
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x[0]), "r"(x[1]));
}
// docs-end: mma
#endif
__device__ inline float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

template <class K>  // a Bf16Kernel
class Bf16Weights {
  static constexpr int kParts = K::tile().parts, kDepth = K::tile().depth, kKept = K::tile().kept;
  static constexpr int kRowTiles = K::tile().row_tiles, kStride = K::tile().stride(), kThreads = K::tile().threads();
  static constexpr int kOdd = kDepth % 2;
  static_assert((kDepth - kKept) % 2 == 0 && kKept > 0, "only the first tile may be without a partner");
  // An mma has a latency of some 32 cycles, and a tensor core starts one every 4 to 8, so several independent sums are
  // needed.
  static constexpr int kChains = kParts * kRowTiles < 4 ? 2 : 1;

 public:
  // Loads the weights of the bundle's first `outputs` outputs and `inputs` inputs; all others are zero. The weight of
  // output o and input i is at from[o * next_output + i * next_input]. `shared` has space for the weights of Bf16Layout.
  __device__ Bf16Weights(void* shared, const float* from, int64_t next_output, int64_t next_input, int outputs,
                         int inputs)
      : shared_(static_cast<uint4*>(shared) + static_cast<int>(threadIdx.x)) {
    const bool is_wide = next_input == 1 && (reinterpret_cast<intptr_t>(from) / 4 | next_output | inputs) % 4 == 0;
    const auto load = [&](int i, uint32_t(&w)[kParts][4]) {
      float4 four[kParts][2];  // inputs of an output and of the output 8 further
      const int first = input(i);
      const float* const at = from + first * next_input;
      const auto is_there = [&](int output, int k) { return output < outputs && first + k < inputs; };
      // A single branch for all loads, so that they overlap: a load takes several hundred cycles.
      if (is_wide) {
        for_outputs([&](int tile, int half, int output) {
          four[tile][half] = float4{};
          if (is_there(output, 0)) four[tile][half] = *reinterpret_cast<const float4*>(at + output * next_output);
        });
      } else {
        for_outputs([&](int tile, int half, int output) {
          const auto one = [&](int k) {
            return is_there(output, k) ? at[output * next_output + k * next_input] : 0.0f;
          };
          four[tile][half] = float4{one(0), one(1), one(2), one(3)};
        });
      }
      // In the order of mma's operand: 8 outputs further, then the other two inputs.
      for_outputs([&](int tile, int half, int) {
        const float4& x = four[tile][half];
        w[tile][half] = pack_bf16(x.x, x.y), w[tile][half + 2] = pack_bf16(x.z, x.w);
      });
    };
    uint32_t w[kParts][4];
    // Those in shared memory first, a few registers at a time.
#pragma unroll 1
    for (int i = kKept; i < kDepth; ++i) {
      load(i, w);
#pragma unroll
      for (int tile = 0; tile < kParts; ++tile) *place(tile, i) = uint4{w[tile][0], w[tile][1], w[tile][2], w[tile][3]};
    }
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      load(i, w);
#pragma unroll
      for (int tile = 0; tile < kParts; ++tile)
#pragma unroll
        for (int n = 0; n < 4; ++n) kept_[tile][i][n] = w[tile][n];
    }
  }

  // Computes the part's partial sums of the bundle's tiles of outputs. `state` has rows of Bf16Tile::stride() bytes.
  __device__ void multiply(const unsigned char* state, float (&sums)[kParts][kRowTiles][4]) const {
    float more[kChains][kParts][kRowTiles][4] = {};
    const unsigned char* const mine = state + lane() / 4 * kStride;
    if constexpr (kOdd) {
      const unsigned char* const at = mine + 2 * input(0);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const uint2 x = *reinterpret_cast<const uint2*>(at + 8 * r * kStride);
        const uint32_t right[2] = {x.x, x.y};
#pragma unroll
        for (int tile = 0; tile < kParts; ++tile) multiply_tiles_bf16(more[0][tile][r], kept_[tile][0], right);
      }
    }
#pragma unroll
    for (int i = kOdd; i < kKept; i += 2)
      multiply_two(mine, i, more, [&](int tile, int k, uint32_t(&w)[4]) {
#pragma unroll
        for (int n = 0; n < 4; ++n) w[n] = kept_[tile][i + k][n];
      });
#pragma unroll 1
    for (int i = kKept; i < kDepth; i += 2)
      multiply_two(mine, i, more, [&](int tile, int k, uint32_t(&w)[4]) {
        const uint4 from = *place(tile, i + k);
        w[0] = from.x, w[1] = from.y, w[2] = from.z, w[3] = from.w;
      });
#pragma unroll
    for (int tile = 0; tile < kParts; ++tile)
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          sums[tile][r][n] = more[0][tile][r][n];
          if (kChains > 1) sums[tile][r][n] += more[kChains - 1][tile][r][n];
        }
  }

 private:
  // Two tiles of inputs, of which a lane reads eight elements of a row at once.
  template <class Weight>
  __device__ void multiply_two(const unsigned char* mine, int i, float (&more)[kChains][kParts][kRowTiles][4],
                               const Weight& weight) const {
    uint4 x[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
      x[r] = *reinterpret_cast<const uint4*>(mine + 2 * input(i) + 8 * r * kStride);
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int tile = 0; tile < kParts; ++tile) {
        uint32_t w[4];
        weight(tile, k, w);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          const uint32_t right[2] = {k ? x[r].z : x[r].x, k ? x[r].w : x[r].y};
          multiply_tiles_bf16(more[k % kChains][tile][r], w, right);
        }
      }
  }

  template <class Visit>
  __device__ static void for_outputs(const Visit& visit) {
#pragma unroll
    for (int tile = 0; tile < kParts; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half) visit(tile, half, 16 * tile + 8 * half + lane() / 4);
  }
  // The first of the lane's four inputs of a tile.
  __device__ static int input(int i) {
    const int part = static_cast<int>(threadIdx.x) / 32 % kParts, first = 16 * kDepth * part, place = lane() % 4;
    if (kOdd && i == 0) return first + 4 * place;
    return first + 16 * kOdd + 32 * ((i - kOdd) / 2) + 8 * place + 4 * ((i - kOdd) % 2);
  }
  __device__ uint4* place(int tile, int i) const { return shared_ + ((i - kKept) * kParts + tile) * kThreads; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  uint4* const shared_;
  uint32_t kept_[kParts][kKept][4];
};

}  // namespace dmm::cuda
