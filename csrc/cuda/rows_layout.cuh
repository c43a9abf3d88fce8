// The parts of combiner_scan's kernels for one or two rows on which their exchange depends.
#pragma once

#include "combiner_scan.h"
#include "lane_weights.cuh"

namespace dmm::cuda {

// The two products of a step of combiner_scan: the units, and the partial sums from the units.
template <class K>  // a RowsKernel
using ToUnits = LaneWeights<K::kUnits, K::kToInputs, 1, K::kRows>;
template <class K>
using FromUnits = LaneWeights<K::kOutputs, K::kFromInputs, kGivenAtOnce, K::kRows>;

// Offsets in a block's shared memory, in floats: the latents, the units, then the following.
template <class K>
struct RowsLayout {
  static constexpr int kHidden = K::kRows * ToUnits<K>::kVector;
  static constexpr int kSpare = kHidden + K::kRows * FromUnits<K>::kVector;
  static constexpr int kBarriers = kSpare + kSpareNumbers, kRowsAt = kBarriers + kRowBytes / 4 * kMostRows;
  static constexpr int kInbox = kRowsAt + kRowBytes / 4 * kMostRows;
};

// A thread has the latent of a row of a group.
template <class K>
struct LatentThread {
  static constexpr int kOfRow = kMostThreads / K::kRows;  // threads per row, including those without a latent

  __device__ static int row() { return static_cast<int>(threadIdx.x) / kOfRow; }
  __device__ static int latent() { return static_cast<int>(threadIdx.x) % kOfRow; }
};

// Adds in pairs, to shorten the dependency chain.
template <int kCount>
__device__ inline float sum_of(float (&terms)[kCount]) {
#pragma unroll
  for (int apart = 1; apart < kCount; apart *= 2)
#pragma unroll
    for (int i = 0; i + apart < kCount; i += 2 * apart) terms[i] += terms[i + apart];
  return terms[0];
}

}  // namespace dmm::cuda
