// rnn_scan, forward and backward. Nothing of CUDA here.
//
// A scan takes the steps of a row from its end back to 0, its gradient from 0 to the end. Forward in time rows are reversed:
// the strides from step to step are negative, and step 0 is the last in memory. Nothing else is different.
//
// Every block of a cluster owns `tiling.outputs` of the H units of the cluster's rows. A step takes one exchange:
// each block gives its units to all, and so has the whole vector that the next step multiplies.
//
// The tiling is of [H inputs, H / cluster_size outputs].
//
// With a warp tile of any chunks, outputs belong to warps (rnn_scan_warps.cuh), and the tiling is not used.
#pragma once

#include "hang.h"
#include "ragged.h"
#include "warp_tile.h"

namespace dmm::cuda {

struct RnnScan {
  Ragged ragged;
  int cluster_size;
  Tiling tiling;
  int units;  // H
  bool tanh;      // else relu
  bool reversed;  // forward in time
  Matrix w_hh;
  Sequences<const float> x_proj, h_0;
  float* h;      // [P, B, T, H], dense; written everywhere
  int out_step;  // its stride from step to step
  HangReport hang{};
  WarpTile warp_tile{};
};

struct RnnScanBackward {
  Ragged ragged;
  int cluster_size;
  Tiling tiling;
  int units;
  bool tanh, reversed;
  Matrix w_hh;
  Sequences<const float> dh, h;
  float *dx_proj, *dh_0;  // [P, B, T, H] and [P, B, H], dense; written everywhere
  int out_step;           // of dx_proj
  HangReport hang{};
  WarpTile warp_tile{};
};

// How many strides a row's step t lies from where the row begins in memory. The row has so many steps.
template <class Args>
__host__ __device__ int strides_to(const Args& a, int t, int length) {
  return t - int{a.reversed} * (length - 1);
}

inline int threads(const RnnScan& a) { return a.warp_tile.chunks ? kWarpThreads : a.tiling.threads(); }
inline int threads(const RnnScanBackward& a) { return a.warp_tile.chunks ? kWarpThreads : a.tiling.threads(); }

// Of a block, in bytes: the rows, barriers, two states, two buffers of partial sums, what comes from device memory for two
// steps, weights.
template <class Args>
inline int64_t rnn_scan_shared_bytes(const Args& a, int operands) {
  if (a.warp_tile.chunks) return WarpLayout(a.warp_tile, a.ragged.rows_per_cluster, operands + 1).end;
  const Tiling& w = a.tiling;
  const int64_t rows = a.ragged.rows_per_cluster;
  return 16 * rows + 16 * a.ragged.groups() + 4 * (2 * rows * w.stride() + 2 * w.partials() + w.shared_weights(w.threads()) +
                          2 * operands * rows * w.outputs);
}
inline int64_t shared_bytes(const RnnScan& a) { return rnn_scan_shared_bytes(a, 1); }
inline int64_t shared_bytes(const RnnScanBackward& a) { return rnn_scan_shared_bytes(a, 2); }

// Null, or what went wrong: static text.
const char* rnn_scan(const RnnScan& args, void* stream);
const char* rnn_scan_backward(const RnnScanBackward& args, void* stream);
// Those whose outputs belong to warps.
const char* rnn_scan_warps(const RnnScan& args, void* stream);
const char* rnn_scan_warps_backward(const RnnScanBackward& args, void* stream);

}  // namespace dmm::cuda
