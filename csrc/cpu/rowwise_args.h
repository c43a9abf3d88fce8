// What the rowwise kernels are given. No framework type comes below this line.
//
// Every step of every row is computed by itself; the reduced ops sum a row's steps. As in args.h rows are
// particles times batch, and outputs and gradients are contiguous [rows, steps, width] or [rows, width].
// An op of single steps [N, width] takes them as one row of N steps.
#pragma once

#include <cstdint>

#include "args.h"

namespace dmm::cpu {

struct Steps {  // which steps of which rows count
  int64_t rows, batch, steps;
  const int64_t* lengths;   // [batch], each in [0, steps]; null: all steps
  const uint8_t* observed;  // [batch, steps], 0 or 1; null: all steps within the lengths
  bool counts(int64_t row, int64_t step) const {
    const int64_t b = row % batch;
    return (!lengths || step < lengths[b]) && (!observed || observed[b * steps + step]);
  }
};

template <class S>
struct Chain {  // latents and what precedes the first of them
  Steps steps;
  Rows<const S> z;    // [rows, steps, latents]
  Rows<const S> z_0;  // [rows, latents]
  const S* before(int64_t row, int64_t step) const {
    return step == 0 ? z_0.at(row, 0) : z.at(row, step - 1);
  }
};

template <class S>
struct ChainGradients {
  S *dz, *dz_0;
};

template <class S>
struct Gaussians {  // parameters of a Gaussian at each step
  Rows<const S> loc, pre_scale;
};

// Weights [out, in] and biases; with S not const, their gradients.
template <class S>
struct TransitionTensors {
  int64_t latents, gate_units, mean_units;
  S *w_gate_in, *b_gate_in, *w_gate_out, *b_gate_out, *w_mean_in, *b_mean_in, *w_mean_out, *b_mean_out;
  S *w_scale, *b_scale, *w_loc, *b_loc;
};

template <class S>
struct CombinerTensors {
  int64_t latents, units;
  S *w_z, *b_z, *w_loc, *b_loc, *w_scale, *b_scale;
};

template <class S>
struct EmitterTensors {
  int64_t latents, units, outputs;
  S *w_in, *b_in, *w_hidden, *b_hidden;
  S *w_out, *b_out;      // of the logits, or of a Gaussian's loc
  S *w_scale, *b_scale;  // of a Gaussian's pre_scale; null for a Bernoulli
};

struct Sequences {  // steps of some width, and which entries of them count
  Steps steps;
  int64_t width;
  const uint8_t* mask;  // [batch, steps, width], 0 or 1; null: all that `steps` counts
};

template <class S>
struct Observations {
  Sequences sequences;
  Rows<const S> x;  // [rows, steps, outputs]
};

}  // namespace dmm::cpu
