// One step of Adam with clipped gradients on any number of tensors.
#pragma once

#include <cstdint>
#include <vector>

namespace dmm::cuda {

// Four dense arrays of `size` floats in one order, aligned as floats are; none overlaps another. Beside them lie the
// number of the step, from 1, and its learning rate; where one of them is null, the rule's own counts. Several tensors
// may have one in common.
struct AdamTensor {
  float *param, *grad, *exp_avg, *exp_avg_sq;
  int64_t size;
  int64_t* step;
  double* lr;
};

// With a ticket the tensors' numbers are those before the step: it counts the steps and multiplies the rates by `lrd`,
// each once. The ticket is zero between launches, and no other launch at the same time may have it.
struct AdamRule {
  int64_t step;
  double lr, beta1, beta2;
  float eps, weight_decay, clip_norm;
  bool centered_variance;
  double lrd;
  int* ticket;
};

constexpr int kAdamTensors = 64;  // of one launch
constexpr int kAdamThreads = 256;
constexpr int kAdamChunk = 4 * kAdamThreads;  // elements of a block

// Null, or what went wrong: static text.
const char* clipped_adam(const AdamRule& rule, const std::vector<AdamTensor>& tensors, void* stream);

}  // namespace dmm::cuda
