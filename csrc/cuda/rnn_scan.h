// rnn_scan, forward and backward. This header is plain C++, without CUDA.
//
// A scan runs the steps of a row from its end back to 0, its gradient from 0 to the end. Forward in time, rows are
// reversed: the strides from step to step are negative, and step 0 is the last in memory; nothing else differs.
//
// Every block of a cluster owns `tiling.outputs` of the H units of the cluster's rows. A step has one exchange, an
// all-gather of the units, after which each block has the whole vector that the next step multiplies.
//
// The tiling is of [H inputs, H / cluster_size outputs].
//
// With a warp tile of nonzero chunks, outputs belong to warps (rnn_scan_warps.cuh); with a bf16 tile of nonzero warps,
// tensor cores are used (rnn_scan_bf16.cuh). In both cases the tiling is not used. With a mailbox the blocks are a team,
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
  bool tanh;      // otherwise ReLU
  bool reversed;  // forward in time
  Matrix w_hh;
  Sequences<const float> x_proj, h_0;
  float* h;      // [P, B, T, H], dense; all elements are written
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
  float *dx_proj, *dh_0;  // [P, B, T, H] and [P, B, H], dense; all elements are written
  int out_step;           // the stride of dx_proj from step to step
  HangReport hang{};
  WarpTile warp_tile{};
  Mailbox mailbox{};  // of the blocks of a team
  Bf16Tile bf16_tile{};
};

// The offset of step t of a row with the given number of steps from the row's start in memory, in step strides.
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

// Shared memory of a block, in bytes: the rows, barriers, two states, two buffers of partial sums, prefetched operands of
// two steps, weights.
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

// The layout of the teams' words from `words` on, and their total size in bytes.
template <class Args>
inline Mailbox rnn_scan_mailbox(const Args& a, void* words = nullptr) {
  const int64_t of_step = int64_t{a.cluster_size} * a.warp_tile.block_outputs() * word_bytes(a.warp_tile.rows);
  return {static_cast<unsigned char*>(words), 2 * of_step * a.ragged.groups(), static_cast<int>(of_step)};
}

// Returns null, or an error message that is valid until the thread's next launch.
const char* rnn_scan(const RnnScan& args, void* stream);
const char* rnn_scan_backward(const RnnScanBackward& args, void* stream);
// The same with outputs by warps, and for teams.
const char* rnn_scan_warps(const RnnScan& args, void* stream);
const char* rnn_scan_warps_backward(const RnnScanBackward& args, void* stream);
const char* rnn_scan_words(const RnnScan& args, void* stream);
const char* rnn_scan_words_backward(const RnnScanBackward& args, void* stream);
// The same in bf16, for sequences that can be read four elements at a time.
constexpr const char* kNotByFours = "sequences that cannot be read four elements at a time";
inline bool goes_by_fours(const RnnScan& a) { return goes_by_fours(a.x_proj); }
inline bool goes_by_fours(const RnnScanBackward& a) { return goes_by_fours(a.dh) && goes_by_fours(a.h); }
const char* rnn_scan_bf16(const RnnScan& args, void* stream);
const char* rnn_scan_bf16_backward(const RnnScanBackward& args, void* stream);

}  // namespace dmm::cuda
