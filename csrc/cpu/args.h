// What the kernels are given: pointers, sizes and strides. No framework type comes below this line.
//
// Rows are particles times batch, row r with length lengths[r % batch]. The last dimension of every tensor
// is contiguous; rows may lie anywhere and may be one another (a stride of 0). Outputs do not overlap
// inputs. Weights are contiguous [out, in].
#pragma once

#include <cstdint>
#include <vector>

namespace dmm::cpu {

template <class S>
struct Rows {  // a tensor [rows, steps, width]: where each row begins, and how far apart its steps are
  std::vector<S*> begin;
  int64_t step_stride;
  S* at(int64_t row, int64_t step) const { return begin[row] + step * step_stride; }
};

struct Ragged {  // who is active when
  int64_t rows, batch, steps;
  const int64_t* lengths;       // [batch], each in [0, steps]
  std::vector<int64_t> order;   // [rows], longest first
  std::vector<int64_t> active;  // [steps], how many rows of `order` are active at a step
  int64_t length(int64_t row) const { return lengths[row % batch]; }
};

enum class Nonlinearity { relu, tanh };

// x_proj_t = W x_t + b on valid steps, zero past the end.
template <class S>
struct InputProjection {
  Ragged ragged;
  int64_t inputs, units;
  Rows<const S> x;  // [rows, steps, inputs]
  const S *w, *b;   // [units, inputs], contiguous; [units]
  Rows<S> out;      // [rows, steps, units]
};

template <class S>
struct InputProjectionBackward {
  Ragged ragged;
  int64_t inputs, units;
  Rows<const S> dout, x;
  const S* w;
  bool with_dx;  // else dx is not touched
  Rows<S> dx;
  S *dw, *db;
};

// h_t = f(x_proj_t + W_hh h_{t+1}), from each row's own end; h is zero past it.
template <class S>
struct RnnScan {
  Ragged ragged;
  int64_t units;
  Nonlinearity nonlinearity;
  Rows<const S> x_proj;  // [rows, steps, units]
  const S* w_hh;         // [units, units], contiguous
  Rows<const S> h_0;     // [rows, units], step_stride unused
  Rows<S> h;
};

// delta_t = (dh_t + W_hh^T delta_{t-1}) f'(h_t), which is dx_proj; dw_hh = sum delta_t h_{t+1}^T.
template <class S>
struct RnnScanBackward {
  Ragged ragged;
  int64_t units;
  Nonlinearity nonlinearity;
  Rows<const S> dh;
  Rows<const S> h;
  const S* w_hh;
  Rows<const S> h_0;
  Rows<S> dx_proj;
  S* dw_hh;  // [units, units]
  S* dh_0;   // [rows, units]
};

// g = tanh(W_z z_{t-1} + b_z), c = (g + h_t) / 2, loc = W_loc c + b, pre_scale = W_scale c + b,
// z_t = loc + softplus(pre_scale) eps_t.
template <class S>
struct CombinerScan {
  Ragged ragged;
  int64_t units, latents;
  Rows<const S> h;      // [rows, steps, units]
  Rows<const S> eps;    // [rows, steps, latents]
  Rows<const S> z_q_0;  // [rows, latents]
  const S *w_z, *b_z, *w_loc, *b_loc, *w_scale, *b_scale;  // contiguous
  Rows<S> z, loc, pre_scale;
  bool keep_g;  // else g is not touched
  Rows<S> g;    // [rows, steps, units], for the backward
};

template <class S>
struct CombinerScanBackward {
  Ragged ragged;
  int64_t units, latents;
  Rows<const S> dz, dloc, dpre_scale;
  Rows<const S> h, eps, z_q_0, z, pre_scale, g;
  const S *w_z, *w_loc, *w_scale;
  Rows<S> dh, deps;                                    // [rows, steps, *]
  S* dz_q_0;                                           // [rows, latents]
  S *dw_z, *db_z, *dw_loc, *db_loc, *dw_scale, *db_scale;
};

template <class S>
struct AdamTensor {  // four dense tensors of one layout
  S *param, *grad, *exp_avg, *exp_avg_sq;
  int64_t size;
  S step_size;
};

template <class S>
struct ClippedAdam {
  std::vector<AdamTensor<S>> tensors;
  S beta1, rest1, beta2, rest2;  // rest = 1 - beta, taken before it is rounded
  S eps, weight_decay, clip_norm;
  bool centered_variance;
};

}  // namespace dmm::cpu
