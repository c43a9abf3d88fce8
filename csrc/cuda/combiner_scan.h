// combiner_scan, forward and backward. This header is plain C++, without CUDA.
//
// Every block of a cluster owns `to_units.outputs` of the H hidden units. In a step each block computes its units from
// all latents, and from its units partial sums of the next latents' parameters; the partial sums are exchanged, and every
// block adds them itself (an all-reduce).
//
// The tilings are [Z, units of a block] and [units of a block, 2 Z] in the forward pass, [2 Z, units of a block] and
// [units of a block, Z] in the backward pass. The general kernels are instantiated for (smaller, larger) matrix register
// quads (0, 0), (2, 2) and (2, 4). With lane tiles, kernels process one or two rows at a time (combiner_rows.cuh). With
// tensor tiles, they process up to eight rows (combiner_tensor.cuh), and each block adds the sums of its own latents
// only. With lane tiles and a mailbox the blocks are a team, which exchanges through device memory.
#pragma once

#include "hang.h"
#include "lane_tile.h"
#include "mailbox.h"
#include "ragged.h"
#include "scan_kernels.h"
#include "tensor_tile.h"

namespace dmm::cuda {

template <class Tile>
struct CombinerScanBy {
  Ragged ragged;
  int cluster_size;
  Tile to_units, from_units;
  int units, latents;  // H, Z
  Matrix w_z, w_loc, w_scale;
  const float* b_z;   // [H]
  const float* base;  // [P, B, T, 2 Z], dense: the contribution of h and the biases to loc and pre_scale
  Sequences<const float> eps, z_q_0;
  float *z, *loc, *pre_scale;  // [P, B, T, Z], dense; all elements are written
  float* g;                    // likewise [P, B, T, H]: tanh(W_z z_{t-1} + b_z); null if not requested
  HangReport hang{};
  Mailbox mailbox{};  // of the blocks of a team
};

template <class Tile>
struct CombinerScanBackwardBy {
  Ragged ragged;
  int cluster_size;
  Tile to_units, from_units;
  int units, latents;
  Matrix w_z, w_loc, w_scale;
  Sequences<const float> dz, dloc, dpre_scale, eps, pre_scale;
  const float* g;  // [P, B, T, H], dense: tanh(W_z z_{t-1} + b_z)
  float *dh, *da;  // [P, B, T, H], dense: the gradients of h and of the argument of g's tanh
  float *dout;     // [P, B, T, 2 Z], dense: the gradients of loc and pre_scale, including all paths
  float *deps, *dz_q_0;  // [P, B, T, Z] and [P, B, Z], dense
  HangReport hang{};
  Mailbox mailbox{};  // of the blocks of a team
};

using CombinerScan = CombinerScanBy<Tiling>;
using CombinerScanBackward = CombinerScanBackwardBy<Tiling>;
using CombinerRows = CombinerScanBy<LaneTile>;
using CombinerRowsBackward = CombinerScanBackwardBy<LaneTile>;
using CombinerTensor = CombinerScanBy<TensorTile>;
using CombinerTensorBackward = CombinerScanBackwardBy<TensorTile>;

template <class Args>
inline int threads(const Args& a) {
  const int to = a.to_units.threads(), from = a.from_units.threads();
  return to > from ? to : from;
}

// Shared memory of a block, in bytes: the rows, barriers, latents, units, two inboxes, two buffers of partial sums,
// weights, and prefetched operands of two steps.
template <class Args>
inline int64_t combiner_scan_shared_bytes(const Args& a, int latent_operands, int unit_operands) {
  const Tiling &to = a.to_units, &from = a.from_units;
  const int64_t rows = a.ragged.rows_per_cluster;
  const int64_t partials = to.partials() > from.partials() ? to.partials() : from.partials();
  return 16 * rows + 16 * a.ragged.groups() + 4 * (rows * (to.stride() + from.stride()) + 2 * partials +
                          to.shared_weights(threads(a)) + from.shared_weights(threads(a)) +
                          2 * rows * (a.cluster_size * from.outputs + latent_operands * a.latents +
                                      unit_operands * to.outputs));
}
inline int64_t shared_bytes(const CombinerScan& a) { return combiner_scan_shared_bytes(a, 3, 1); }
inline int64_t shared_bytes(const CombinerScanBackward& a) { return combiner_scan_shared_bytes(a, 5, 1); }

// Likewise with lane tiles. Offsets up to the barriers and rows, whose number has a fixed maximum, are compile-time
// constants. They are followed for each row by two inboxes, unless the blocks are a team, and by `operands` source
// pointers and prefetched values of two steps for each thread.
constexpr int kSpareNumbers = 4;  // destination of the stores of threads without a result
constexpr int kRowBytes = 16;     // bytes of a row, and of its two barriers
template <class Args>
inline int64_t combiner_rows_shared_bytes(const Args& a, int operands) {
  const LaneTile &to = a.to_units, &from = a.from_units;
  const int64_t rows = a.ragged.rows_per_group;
  const int64_t inboxes = a.mailbox.team_bytes ? 0 : 2 * a.cluster_size * rows * from.width();
  const int64_t of_a_group = inboxes + (2 + 2) * operands * kMostThreads;
  return 2 * kRowBytes * kMostRows +
         4 * (rows * (to.vector() + from.vector()) + kSpareNumbers + a.ragged.groups() * of_a_group);
}
inline int64_t shared_bytes(const CombinerRows& a) { return combiner_rows_shared_bytes(a, 3); }
inline int64_t shared_bytes(const CombinerRowsBackward& a) { return combiner_rows_shared_bytes(a, 6); }

// Likewise with tensor tiles: each block sends `sums` per latent. A thread has the operands of its latent with their
// source pointers, of two words each, and the operands of its units.
template <class Args>
inline int64_t combiner_tensor_shared_bytes(const Args& a, int sums, int latent_operands, int unit_operands) {
  const int slice = latent_slice(a.latents, a.cluster_size);
  const TensorLayout layout(a.to_units.steps, a.from_units.steps, a.cluster_size, slice, sums,
                            (1 + 2) * latent_operands + unit_operands);
  return layout.bytes(a.ragged.groups());
}
inline int64_t shared_bytes(const CombinerTensor& a) { return combiner_tensor_shared_bytes(a, 2, 3, 0); }
inline int64_t shared_bytes(const CombinerTensorBackward& a) {
  return combiner_tensor_shared_bytes(a, 1, 5, 4 * a.to_units.tiles);
}

// The number of sums per latent, all of which are in one word.
inline int sums_of_latent(const CombinerRows&) { return 2; }
inline int sums_of_latent(const CombinerRowsBackward&) { return 1; }
// The layout of the teams' words from `words` on, and their total size in bytes.
template <class Args>
inline Mailbox combiner_mailbox(const Args& a, void* words = nullptr) {
  const int sums = sums_of_latent(a);
  const int64_t of_block = int64_t{a.ragged.rows_per_group} * a.from_units.width() / sums * word_bytes(sums);
  const int64_t of_step = a.cluster_size * of_block;
  return {static_cast<unsigned char*>(words), 2 * of_step * a.ragged.groups(), static_cast<int>(of_step)};
}

// Calls `run` with the kernel for a team; returns false if there is none.
template <class Run>
bool with_words_kernel(const CombinerRows& a, Run run) {
  return with_words_forward(a.to_units, a.from_units, a.ragged.rows_per_group, run);
}
template <class Run>
bool with_words_kernel(const CombinerRowsBackward& a, Run run) {
  return with_words_backward(a.to_units, a.from_units, a.ragged.rows_per_group, run);
}

// Returns null, or an error message that is valid until the thread's next launch.
const char* combiner_scan(const CombinerScan& args, void* stream);
const char* combiner_scan_backward(const CombinerScanBackward& args, void* stream);
const char* combiner_scan(const CombinerRows& args, void* stream);
const char* combiner_scan_backward(const CombinerRowsBackward& args, void* stream);
// The same for teams.
const char* combiner_scan_words(const CombinerRows& args, void* stream);
const char* combiner_scan_words_backward(const CombinerRowsBackward& args, void* stream);
const char* combiner_scan(const CombinerTensor& args, void* stream);
const char* combiner_scan_backward(const CombinerTensorBackward& args, void* stream);

}  // namespace dmm::cuda
