// rnn_scan, forward and backward. Nothing of CUDA here.
//
// Every block of a cluster owns `tiling.outputs` of the H units of the cluster's rows. A step takes one exchange:
// each block gives its units to all, and so has the whole vector that the next step multiplies.
//
// The tiling is of [H inputs, H / cluster_size outputs]; there are kernels for 0, 2, 4, 6 and 8 quads in registers,
// and on tensor cores for 1 tile of 4 quads, 2 of 8, and 3 of 10.
//
// Where `by_warps`, four outputs belong to a warp (rnn_scan_warps.cuh), and of the tiling there are only inputs and
// outputs, a multiple of four. There are kernels for few rows and up to 6 chunks of 128 units. `gathered` are outputs that a
// block gives together; else each warp gives its own.
#pragma once

#include "hang.h"
#include "ragged.h"

namespace dmm::cuda {

struct RnnScan {
  Ragged ragged;
  int cluster_size;
  Tiling tiling;
  int units;  // H
  bool tanh;  // else relu
  Matrix w_hh;
  Sequences<const float> x_proj, h_0;
  float* h;  // [P, B, T, H], dense; written everywhere
  HangReport hang{};
  bool by_warps = false, gathered = false;
};

struct RnnScanBackward {
  Ragged ragged;
  int cluster_size;
  Tiling tiling;
  int units;
  bool tanh;
  Matrix w_hh;
  Sequences<const float> dh, h;
  float *dx_proj, *dh_0;  // [P, B, T, H] and [P, B, H], dense; written everywhere
  HangReport hang{};
  bool by_warps = false, gathered = false;
};

template <class Args>
int threads(const Args& a) {
  return a.by_warps ? 32 * (a.tiling.outputs / 4) : a.tiling.threads();
}

// Of a block whose outputs belong to warps, in bytes: the rows, barriers, two states.
template <class Args>
int64_t rnn_scan_warps_shared_bytes(const Args& a) {
  const int64_t rows = a.ragged.rows_per_cluster, chunks = (a.tiling.inputs + kWarpChunk - 1) / kWarpChunk;
  return 16 * rows + 16 * a.ragged.groups() + 8 * rows * kWarpChunk * chunks;
}

// Of a block, in bytes: the rows, barriers, two states, two buffers of partial sums, what comes from device memory for two
// steps, weights.
template <class Args>
inline int64_t rnn_scan_shared_bytes(const Args& a, int operands) {
  if (a.by_warps) return rnn_scan_warps_shared_bytes(a);
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
