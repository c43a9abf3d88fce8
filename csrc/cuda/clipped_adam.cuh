#pragma once

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "clipped_adam.h"
#include "cluster.cuh"

namespace dmm::cuda {

// The arguments of a launch, passed by value so that nothing has to be copied to the device first. Tensor i has the blocks
// from first_block[i] to first_block[i + 1], one per chunk and at least one. Bit i of `counts` and of `decays` is set if no
// later tensor, in this launch or another, shares its step count or rate, so that this tensor's blocks update it.
struct AdamLaunch {
  AdamRule rule;
  uint64_t counts, decays;
  int count;
  int first_block[kAdamTensors + 1];
  AdamTensor tensors[kAdamTensors];

  __host__ __device__ int blocks() const { return first_block[count]; }
};
static_assert(sizeof(AdamLaunch) <= 4096, "the limit of a kernel's parameters on every GPU");
static_assert(kAdamTensors <= 64 && kAdamTensors <= kAdamThreads, "a bit and a thread for each tensor");

// Calls launch(AdamLaunch) for groups of up to kAdamTensors tensors, until it returns an error.
template <class Launch>
const char* in_launches(const AdamRule& rule, const std::vector<AdamTensor>& tensors, Launch launch) {
  std::unordered_map<const void*, size_t> last;  // the last tensor that has each step count or rate
  if (rule.ticket)
    for (size_t i = 0; i < tensors.size(); ++i) last[tensors[i].step] = last[tensors[i].lr] = i;
  for (size_t first = 0; first < tensors.size(); first += kAdamTensors) {
    AdamLaunch args{rule, 0, 0, static_cast<int>(std::min<size_t>(kAdamTensors, tensors.size() - first)), {}, {}};
    for (int i = 0; i < args.count; ++i) {
      const AdamTensor& t = args.tensors[i] = tensors[first + i];
      const int64_t chunks = (std::max<int64_t>(t.size, 1) + kAdamChunk - 1) / kAdamChunk;
      args.first_block[i + 1] = args.first_block[i] + static_cast<int>(chunks);
      if (rule.ticket) {
        args.counts |= static_cast<uint64_t>(last[t.step] == first + i) << i;
        args.decays |= static_cast<uint64_t>(last[t.lr] == first + i) << i;
      }
    }
    if (const char* error = launch(args)) return error;
  }
  return nullptr;
}

struct alignas(16) AdamFour {
  float of[4];
};

// The four elements of a chunk that belong to a thread: adjacent, for vector loads and stores, if all arrays are aligned;
// otherwise a block's width apart, so that a warp's accesses are coalesced.
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

// The number of a step and its learning rate.
struct AdamNumbers {
  int64_t step;
  double lr;
};

__device__ inline AdamNumbers adam_numbers(const AdamRule& rule, const AdamTensor& t) {
  if (rule.ticket) return {*t.step + 1, *t.lr * rule.lrd};
  return {t.step ? *t.step : rule.step, t.lr ? *t.lr : rule.lr};
}

// The learning rate times the bias correction of the moments.
__device__ inline float adam_step_size(const AdamRule& rule, const AdamNumbers& numbers) {
  const double step = static_cast<double>(numbers.step);
  return static_cast<float>(numbers.lr * sqrt(1 - pow(rule.beta2, step)) / (1 - pow(rule.beta1, step)));
}

// Values that one thread of a block computes for all.
struct AdamShared {
  float step_size;
  int is_last;
};

// Draws from the ticket for a block, by the thread that has read the numbers: so every block draws after it has read.
__device__ inline int adam_draw(const AdamRule& rule) {
  __threadfence();  // orders the reads before the draw
  return atomicAdd(rule.ticket, 1);
}

// Updates the numbers if the block was the last to draw, so that all blocks have read them. `drawn` is valid in the first
// thread; each thread updates the numbers of one tensor.
__device__ inline void adam_advance(const AdamLaunch& a, int drawn, AdamShared* shared) {
  const int i = static_cast<int>(threadIdx.x);
  if (i == 0) {
    shared->is_last = drawn == a.blocks() - 1;
    if (shared->is_last) __threadfence();  // orders the draw before the writes
  }
  __syncthreads();
  if (!shared->is_last) return;
  if (i == 0) *a.rule.ticket = 0;
  if (i < a.count && a.counts >> i & 1) ++*a.tensors[i].step;
  if (i < a.count && a.decays >> i & 1) *a.tensors[i].lr *= a.rule.lrd;
}

__device__ inline void adam_step(const AdamRule& rule, float step_size, float& p, float& g, float& m, float& v) {
  const float clip = rule.clip_norm;
  g = g < -clip ? -clip : (g > clip ? clip : g);  // propagates NaN
  const float d = g + rule.weight_decay * p;
  m = m * static_cast<float>(rule.beta1) + static_cast<float>(1 - rule.beta1) * d;
  const float e = rule.centered_variance ? d - m : d;
  v = v * static_cast<float>(rule.beta2) + static_cast<float>(1 - rule.beta2) * (e * e);
  p -= step_size * m / (sqrtf(v) + rule.eps);
}

// The tensor of a block: the last one whose first block is not after it.
__device__ inline int adam_tensor_of(const AdamLaunch& a, int block) {
  int low = 0, high = a.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (a.first_block[middle] <= block ? low : high) = middle;
  }
  return low;
}

// A block updates a chunk of one tensor. It draws from the ticket early and uses the result at the end, which hides the
// latency of the atomic operation.
__global__ void __launch_bounds__(kAdamThreads) clipped_adam_kernel(const __grid_constant__ AdamLaunch a) {
  DMM_SHARED(AdamShared, shared);
  const int block = static_cast<int>(blockIdx.x);
  const int i = adam_tensor_of(a, block);
  const AdamTensor& t = a.tensors[i];
  const AdamElements mine(t, block - a.first_block[i]);
  AdamFour p = mine.read(t.param), g = mine.read(t.grad), m = mine.read(t.exp_avg), v = mine.read(t.exp_avg_sq);
  int drawn = 0;
  if (threadIdx.x == 0) {
    const AdamNumbers numbers = adam_numbers(a.rule, t);
    if (a.rule.ticket) drawn = adam_draw(a.rule);
    shared->step_size = adam_step_size(a.rule, numbers);
  }
  __syncthreads();
  for (int k = 0; k < 4; ++k) adam_step(a.rule, shared->step_size, p.of[k], g.of[k], m.of[k], v.of[k]);
  mine.write(t.param, p);
  mine.write(t.grad, g);
  mine.write(t.exp_avg, m);
  mine.write(t.exp_avg_sq, v);
  if (a.rule.ticket) adam_advance(a, drawn, shared);
}

}  // namespace dmm::cuda
