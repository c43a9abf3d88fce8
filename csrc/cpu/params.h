// Parameters of the CPU kernels: pointers, sizes and strides, without framework types.
//
// A row is a particle's sequence: row p * B + b has length lengths[b]. Inputs are tables of row pointers, and rows may
// overlap; the last dimension is contiguous. Weights [out, in], results and gradients are contiguous, and results and
// gradients overlap nothing. An op of single steps [N, width] treats them as one row of N steps.
#pragma once

#include <cstdint>
#include <vector>

namespace dmm::cpu {

template <class S>
struct Rows {  // [rows, steps, width]: a pointer to each row, and the stride of its steps
  std::vector<S*> begin;
  int64_t step_stride;
  S* at(int64_t row, int64_t step) const { return begin[row] + step * step_stride; }
};

struct Observed {  // 0 or 1 for each step or each entry; both null: all within the lengths are observed
  const uint8_t* steps;    // [B, T]
  const uint8_t* entries;  // [B, T, D]
};

#include "ops.inc"

template <class S>
struct AdamTensor {  // four dense tensors with the same layout
  S *param, *grad, *exp_avg, *exp_avg_sq;
  int64_t size;
  S step_size;
};

template <class S>
struct ClippedAdam {
  std::vector<AdamTensor<S>> tensors;
  S beta1, one_minus_beta1, beta2, one_minus_beta2;  // the differences are computed in double, then rounded to S
  S eps, weight_decay, clip_norm;
  bool centered_variance;
};

}  // namespace dmm::cpu
