// One step of Adam with clipped gradients on any number of tensors.
#pragma once

#include <cstdint>
#include <vector>

namespace dmm::cuda {

// Four dense arrays of `size` floats in the same order, aligned to floats, without overlap. `step` is the number of the
// step, from 1, and `lr` its learning rate, both in device memory and possibly shared by several tensors; if one of them
// is null, the rule's value is used.
struct AdamTensor {
  float *param, *grad, *exp_avg, *exp_avg_sq;
  int64_t size;
  int64_t* step;
  double* lr;
};

// With a ticket the tensors' numbers are those before the step, which increments the counts and multiplies the rates by
// `lrd`, each once. The ticket is zero between launches and must not be used by concurrent launches.
struct AdamRule {
  int64_t step;
  double lr, beta1, beta2;
  float eps, weight_decay, clip_norm;
  bool centered_variance;
  double lrd;
  int* ticket;
};

constexpr int kAdamTensors = 64;  // maximum tensors per launch
constexpr int kAdamThreads = 256;
constexpr int kAdamChunk = 4 * kAdamThreads;  // elements per block

// Returns null, or an error message with static lifetime.
const char* clipped_adam(const AdamRule& rule, const std::vector<AdamTensor>& tensors, void* stream);

}  // namespace dmm::cuda
