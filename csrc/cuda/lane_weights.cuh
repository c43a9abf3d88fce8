// The product of a vector in shared memory with a block's slice of a matrix, which is in the registers of its threads.
#pragma once

#include "cluster.cuh"
#include "lane_tile.h"

namespace dmm::cuda {

// The weights of an output for a lane's inputs: a pointer to the first, and the stride.
struct WeightLine {
  const float* first;
  int64_t next;
};

// Each thread has kOutputs x kInputs weights. Eight lanes have all inputs of kOutputs outputs, and reduce their sums of one
// or two rows by shuffles. While a lane has more than kKept sums, each shuffle halves them: the lane sends one half, first
// that of the other row, and adds the received values to the other half. Further shuffles reduce all remaining sums. In
// the end a lane has kKept sums of one row, which kCopies lanes have in common.
//
// Each lane has its own order of rows and outputs, in which it always sends the second half, so that no sum has to be
// selected at run time.
template <int kOutputs, int kInputs, int kKept, int kRows>
class LaneWeights {
  static constexpr int kOfRow = kLaneParts / kRows;  // lanes that end with the same row
  static_assert(kRows == 1 || kRows == 2);
  static_assert(kKept <= kOutputs && kOutputs <= kOfRow * kKept && kOfRow % (kOutputs / kKept) == 0);

 public:
  static constexpr int kCopies = kOfRow * kKept / kOutputs;
  static constexpr int kVector = kLaneParts * lane_stride(kInputs);  // elements of a row in shared memory

  __device__ static int part() { return static_cast<int>(threadIdx.x) % kLaneParts; }
  __device__ static int group() { return static_cast<int>(threadIdx.x) / kLaneParts; }
  // The row and the first output of the sums that the lane has in the end.
  __device__ static int row() { return part() / kOfRow; }
  __device__ static int first_kept() { return group() * kOutputs + turn(); }
  // The index among the lanes that have the same sums.
  __device__ static int copy() { return part() % kCopies; }

  // Loads the weights for `outputs` outputs and `inputs` inputs; `line(output, part)` is the location of those of a lane.
  // The weights are not used here, which would wait for the loads.
  template <class Line>
  __device__ void bring(int outputs, int inputs, Line line) {
    const float* from[kOutputs];
    int64_t next[kOutputs];
    int inputs_of[kOutputs];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const int output = group() * kOutputs + (i ^ turn());
      const WeightLine given = line(output < outputs ? output : 0, part());
      from[i] = given.first;
      next[i] = given.next;
      inputs_of[i] = output < outputs ? inputs : 0;
    }
#pragma unroll
    for (int k = 0; k < kInputs; ++k) {
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
        weights_[i][k] = part() + kLaneParts * k < inputs_of[i] ? *from[i] : 0.0f;
        from[i] += next[i];
      }
    }
  }

  // `vectors` is [kRows][kVector]. All lanes of a warp must call this.
  __device__ void multiply(const float* vectors, float (&kept)[kKept]) const {
    float sums[kRows][kOutputs] = {};
#pragma unroll
    for (int quad = 0; 4 * quad < kInputs; ++quad) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float* const mine = vectors + (r ^ row()) * kVector + part() * lane_stride(kInputs);
        const float4 four = *reinterpret_cast<const float4*>(mine + 4 * quad);
        const float inputs[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int k = 0; k < 4 && 4 * quad + k < kInputs; ++k)
#pragma unroll
          for (int i = 0; i < kOutputs; ++i) sums[r][i] += weights_[i][4 * quad + k] * inputs[k];
      }
    }
    if constexpr (kRows > 1) {
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) sums[0][i] += __shfl_xor_sync(~0u, sums[1][i], kOfRow);
    }
    add_up<kOutputs, kOfRow / 2>(sums[0]);
    for (int i = 0; i < kKept; ++i) kept[i] = sums[0][i];
  }

 private:
  __device__ static int turn() { return part() % kOfRow / kCopies * kKept; }

  template <int kCount, int kMask>
  __device__ static void add_up(float (&sums)[kOutputs]) {
    constexpr bool kHalves = kCount > kKept;
    constexpr int kLeft = kHalves ? kCount / 2 : kCount;
#pragma unroll
    for (int i = 0; i < kLeft; ++i) sums[i] += __shfl_xor_sync(~0u, sums[kHalves ? kLeft + i : i], kMask);
    if constexpr (kMask > 1) add_up<kLeft, kMask / 2>(sums);
  }

  float weights_[kOutputs][kInputs];
};

}  // namespace dmm::cuda
