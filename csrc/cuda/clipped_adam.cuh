#pragma once

#include <algorithm>
#include <cmath>

#include "clipped_adam.h"
#include "cluster.cuh"

namespace dmm::cuda {

// What a launch takes by value, so that nothing has to be copied to the device before it. Tensor i has the blocks
// from first_block[i] to first_block[i + 1], a chunk each.
struct AdamLaunch {
  AdamRule rule;
  int count;
  int first_block[kAdamTensors + 1];
  AdamTensor tensors[kAdamTensors];

  int blocks() const { return first_block[count]; }
};
static_assert(sizeof(AdamLaunch) <= 4096, "what a kernel's parameters may take on every GPU");

// Calls launch(AdamLaunch) for as many tensors at a time as one holds, until it returns an error.
template <class Launch>
const char* in_launches(const AdamRule& rule, const std::vector<AdamTensor>& tensors, Launch launch) {
  for (size_t first = 0; first < tensors.size(); first += kAdamTensors) {
    AdamLaunch args{rule, static_cast<int>(std::min<size_t>(kAdamTensors, tensors.size() - first)), {}, {}};
    for (int i = 0; i < args.count; ++i) {
      args.tensors[i] = tensors[first + i];
      args.first_block[i + 1] =
          args.first_block[i] + static_cast<int>((args.tensors[i].size + kAdamChunk - 1) / kAdamChunk);
    }
    if (args.blocks() == 0) continue;
    if (const char* error = launch(args)) return error;
  }
  return nullptr;
}

struct alignas(16) AdamFour {
  float of[4];
};

// The four elements of a chunk that are a thread's own. Neighbours, to be moved at once, where all arrays are aligned
// for it; else a block's width apart, so that what a warp moves lies together.
class AdamElements {
 public:
  __device__ AdamElements(const AdamTensor& t, int64_t chunk) {
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(t.param) | reinterpret_cast<uintptr_t>(t.grad) |
                                reinterpret_cast<uintptr_t>(t.exp_avg) | reinterpret_cast<uintptr_t>(t.exp_avg_sq);
    const bool aligned = addresses % sizeof(AdamFour) == 0;
    const int thread = static_cast<int>(threadIdx.x);
    apart_ = aligned ? 1 : kAdamThreads;
    first_ = chunk * kAdamChunk + (aligned ? 4 * thread : thread);
    size_ = t.size;
    at_once_ = aligned && first_ + 4 <= size_;
  }

  __device__ AdamFour read(const float* from) const {
    if (at_once_) return *reinterpret_cast<const AdamFour*>(from + first_);
    AdamFour four;
    for (int k = 0; k < 4; ++k) four.of[k] = here(k) ? from[first_ + k * apart_] : 0.0f;
    return four;
  }

  __device__ void write(float* to, const AdamFour& four) const {
    if (at_once_) {
      *reinterpret_cast<AdamFour*>(to + first_) = four;
      return;
    }
    for (int k = 0; k < 4; ++k)
      if (here(k)) to[first_ + k * apart_] = four.of[k];
  }

 private:
  __device__ bool here(int k) const { return first_ + k * apart_ < size_; }

  int64_t first_, size_;
  int apart_;
  bool at_once_;
};

// The learning rate times the correction of the averages' bias.
__device__ inline float adam_step_size(const AdamRule& rule, const AdamTensor& t) {
  const double step = static_cast<double>(t.step ? *t.step : rule.step), lr = t.lr ? *t.lr : rule.lr;
  return static_cast<float>(lr * sqrt(1 - pow(rule.beta2, step)) / (1 - pow(rule.beta1, step)));
}

__device__ inline void adam_step(const AdamRule& rule, float step_size, float& p, float& g, float& m, float& v) {
  const float clip = rule.clip_norm;
  g = g < -clip ? -clip : (g > clip ? clip : g);  // NaN stays
  const float d = g + rule.weight_decay * p;
  m = m * static_cast<float>(rule.beta1) + static_cast<float>(1 - rule.beta1) * d;
  const float e = rule.centered_variance ? d - m : d;
  v = v * static_cast<float>(rule.beta2) + static_cast<float>(1 - rule.beta2) * (e * e);
  p -= step_size * m / (sqrtf(v) + rule.eps);
}

// Which tensor a block is for: the last to begin at or before it, for an empty one has no block.
__device__ inline int adam_tensor_of(const AdamLaunch& a, int block) {
  int low = 0, high = a.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (a.first_block[middle] <= block ? low : high) = middle;
  }
  return low;
}

// A block steps a chunk of one tensor. Shared memory: the step size, for which one thread is enough.
__global__ void __launch_bounds__(kAdamThreads) clipped_adam_kernel(const __grid_constant__ AdamLaunch a) {
  DMM_SHARED(float, step_size);
  const int block = static_cast<int>(blockIdx.x);
  const int i = adam_tensor_of(a, block);
  const AdamTensor& t = a.tensors[i];
  const AdamElements mine(t, block - a.first_block[i]);
  AdamFour p = mine.read(t.param), g = mine.read(t.grad), m = mine.read(t.exp_avg), v = mine.read(t.exp_avg_sq);
  if (threadIdx.x == 0) *step_size = adam_step_size(a.rule, t);
  __syncthreads();
  for (int k = 0; k < 4; ++k) adam_step(a.rule, *step_size, p.of[k], g.of[k], m.of[k], v.of[k]);
  mine.write(t.param, p);
  mine.write(t.grad, g);
  mine.write(t.exp_avg, m);
  mine.write(t.exp_avg_sq, v);
}

}  // namespace dmm::cuda
