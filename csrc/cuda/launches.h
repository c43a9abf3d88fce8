// Conversion of the launch ops' arguments to kernel arguments. This header is plain C++, without CUDA or a framework: the
// tensors may be torch's or the emulator's; for each type there are functions
//
//   dims_of(t)                      the number of dimensions
//   size_of(t, d), stride_of(t, d)  of dimension d
//   floats_of(t), longs_of(t)       the elements
//   result_of(t)                    the elements of a result
//
// declared before this file, or in the namespace of the tensors.
#pragma once

#include <string>
#include <vector>

#include "combiner_scan.h"
#include "plan.h"
#include "rnn_scan.h"

namespace dmm::cuda {

#include "ops.inc"

// [P, B, T, width] or [P, B, width]; may be strided in every dimension.
template <class Tensor>
Sequences<const float> sequences_of(const Tensor& t) {
  const int64_t dims = dims_of(t);
  return {floats_of(t), stride_of(t, 0), stride_of(t, 1), dims == 4 ? stride_of(t, 2) : 0, stride_of(t, dims - 1)};
}

// The sequences of a scan, whose steps may be reversed.
template <class Scan, class Tensor>
Sequences<const float> sequences_of(const Scan& a, const Tensor& t) {
  Sequences<const float> all = sequences_of(t);
  if (a.reversed) all.step = -all.step;
  return all;
}

template <class Tensor>
Matrix matrix_of(const Tensor& t) {
  return {floats_of(t), stride_of(t, 0), stride_of(t, 1)};
}

// The rows of `like` [P, B, T, width].
template <class Tensor>
Ragged ragged_of(const Tensor& like, const Tensor& lengths, const Plan& plan) {
  Ragged ragged{};
  ragged.lengths = longs_of(lengths);
  ragged.lengths_stride = stride_of(lengths, 0);
  ragged.particles = static_cast<int>(size_of(like, 0));
  ragged.sequences = static_cast<int>(size_of(like, 1));
  ragged.steps = static_cast<int>(size_of(like, 2));
  ragged.rows_per_cluster = static_cast<int>(plan[0]);
  ragged.rows_per_group = static_cast<int>(plan[1]);
  return ragged;
}

// The common arguments of rnn_scan and its gradient.
template <class Scan, class Launch>
Scan rnn_scan_of(const Launch& t) {
  Scan a{};
  a.ragged = ragged_of(t.h, t.lengths, t.plan);
  a.cluster_size = static_cast<int>(t.plan[2]);
  a.tiling = rnn_tiling_of(t.plan);
  a.warp_tile = warp_tile_of(t.plan);
  a.bf16_tile = bf16_tile_of(t.plan);
  a.units = static_cast<int>(size_of(t.h, 3));
  a.tanh = t.nonlinearity == "tanh";
  a.reversed = t.direction == "forward";
  a.out_step = a.reversed ? -a.units : a.units;
  a.w_hh = matrix_of(t.w_hh);
  return a;
}

template <class Tensor>
RnnScan scan_of(const LaunchRnnScan<Tensor>& t) {
  RnnScan a = rnn_scan_of<RnnScan>(t);
  a.x_proj = sequences_of(a, t.x_proj);
  a.h_0 = sequences_of(t.h_0);
  a.h = result_of(t.h);
  return a;
}

template <class Tensor>
RnnScanBackward scan_of(const LaunchRnnScanBackward<Tensor>& t) {
  RnnScanBackward a = rnn_scan_of<RnnScanBackward>(t);
  a.dh = sequences_of(a, t.dh);
  a.h = sequences_of(a, t.h);
  a.dx_proj = result_of(t.dx_proj);
  a.dh_0 = result_of(t.dh_0);
  return a;
}

// The common arguments of both directions of combiner_scan.
template <class Scan, class Tile, class Launch>
Scan combiner_scan_of(const Launch& t, const Tile& to_units, const Tile& from_units) {
  Scan a{};
  a.ragged = ragged_of(t.eps, t.lengths, t.plan);
  a.cluster_size = static_cast<int>(t.plan[2]);
  a.to_units = to_units;
  a.from_units = from_units;
  a.units = static_cast<int>(size_of(t.weights.w_z, 0));
  a.latents = static_cast<int>(size_of(t.weights.w_z, 1));
  a.w_z = matrix_of(t.weights.w_z);
  a.w_loc = matrix_of(t.weights.w_loc);
  a.w_scale = matrix_of(t.weights.w_scale);
  a.eps = sequences_of(t.eps);
  return a;
}

// base and b_z must be dense.
template <class Tensor, class Tile>
CombinerScanBy<Tile> scan_of(const LaunchCombinerScan<Tensor>& t, const Tile& to_units, const Tile& from_units) {
  auto a = combiner_scan_of<CombinerScanBy<Tile>>(t, to_units, from_units);
  a.b_z = floats_of(t.weights.b_z);
  a.base = floats_of(t.base);
  a.z_q_0 = sequences_of(t.z_q_0);
  a.z = result_of(t.z);
  a.loc = result_of(t.loc);
  a.pre_scale = result_of(t.pre_scale);
  a.g = t.keep_g ? result_of(t.g) : nullptr;
  return a;
}

// g must be dense.
template <class Tensor, class Tile>
CombinerScanBackwardBy<Tile> scan_of(const LaunchCombinerScanBackward<Tensor>& t, const Tile& to_units,
                                     const Tile& from_units) {
  auto a = combiner_scan_of<CombinerScanBackwardBy<Tile>>(t, to_units, from_units);
  a.dz = sequences_of(t.dz);
  a.dloc = sequences_of(t.dloc);
  a.dpre_scale = sequences_of(t.dpre_scale);
  a.pre_scale = sequences_of(t.pre_scale);
  a.g = floats_of(t.g);
  a.dh = result_of(t.dh);
  a.da = result_of(t.da);
  a.dout = result_of(t.dout);
  a.deps = result_of(t.deps);
  a.dz_q_0 = result_of(t.dz_q_0);
  return a;
}

}  // namespace dmm::cuda
