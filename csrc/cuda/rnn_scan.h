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
// With a warp tile of any chunks, outputs belong to warps (rnn_scan_warps.cuh), and with a bf16 tile of any warps,
// tensor cores multiply (rnn_scan_bf16.cuh): then the tiling is not used. With a mailbox the cluster's blocks are a team,
// which exchanges through device memory.
#pragma once

#include "bf16_tile.h"
#include "hang.h"
#include "mailbox.h"
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
  Mailbox mailbox{};  // of the blocks of a team
  Bf16Tile bf16_tile{};
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
  Mailbox mailbox{};  // of the blocks of a team
  Bf16Tile bf16_tile{};
};

// How many strides a row's step t lies from where the row begins in memory. The row has so many steps.
template <class Args>
__host__ __device__ int strides_to(const Args& a, int t, int length) {
  return t - int{a.reversed} * (length - 1);
}

template <class Args>
inline int rnn_scan_threads(const Args& a) {
  if (a.bf16_tile.warps) return a.bf16_tile.threads();
  return a.warp_tile.chunks ? kWarpThreads : a.tiling.threads();
}
inline int threads(const RnnScan& a) { return rnn_scan_threads(a); }
inline int threads(const RnnScanBackward& a) { return rnn_scan_threads(a); }

// Of a block, in bytes: the rows, barriers, two states, two buffers of partial sums, what comes from device memory for two
// steps, weights.
template <class Args>
inline int64_t rnn_scan_shared_bytes(const Args& a, int operands) {
  if (a.bf16_tile.warps) return Bf16Layout(a.bf16_tile, a.ragged.rows_per_cluster, a.ragged.groups(), operands + 1).end;
  if (a.warp_tile.chunks) return WarpLayout(a.warp_tile, a.ragged.rows_per_cluster, operands + 1).end;
  const Tiling& w = a.tiling;
  const int64_t rows = a.ragged.rows_per_cluster;
  return 16 * rows + 16 * a.ragged.groups() + 4 * (2 * rows * w.stride() + 2 * w.partials() + w.shared_weights(w.threads()) +
                          2 * operands * rows * w.outputs);
}
inline int64_t shared_bytes(const RnnScan& a) { return rnn_scan_shared_bytes(a, 1); }
inline int64_t shared_bytes(const RnnScanBackward& a) { return rnn_scan_shared_bytes(a, 2); }

// Where the teams' words lie from `words` on, and how many bytes they take in all.
template <class Args>
inline Mailbox rnn_scan_mailbox(const Args& a, void* words = nullptr) {
  const int64_t of_step = int64_t{a.cluster_size} * a.warp_tile.block_outputs() * word_bytes(a.warp_tile.rows);
  return {static_cast<unsigned char*>(words), 2 * of_step * a.ragged.groups(), static_cast<int>(of_step)};
}

// Null, or what went wrong, valid until the thread's next launch.
const char* rnn_scan(const RnnScan& args, void* stream);
const char* rnn_scan_backward(const RnnScanBackward& args, void* stream);
// Those whose outputs belong to warps, and of teams.
const char* rnn_scan_warps(const RnnScan& args, void* stream);
const char* rnn_scan_warps_backward(const RnnScanBackward& args, void* stream);
const char* rnn_scan_words(const RnnScan& args, void* stream);
const char* rnn_scan_words_backward(const RnnScanBackward& args, void* stream);
// Those in bf16, of what goes by fours.
constexpr const char* kNotByFours = "sequences of which four numbers cannot be read at once";
inline bool goes_by_fours(const RnnScan& a) { return goes_by_fours(a.x_proj); }
inline bool goes_by_fours(const RnnScanBackward& a) { return goes_by_fours(a.dh) && goes_by_fours(a.h); }
const char* rnn_scan_bf16(const RnnScan& args, void* stream);
const char* rnn_scan_bf16_backward(const RnnScanBackward& args, void* stream);

}  // namespace dmm::cuda
