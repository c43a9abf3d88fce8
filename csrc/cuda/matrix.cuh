// The product of rows with a block's slice of a weight matrix, which stays on chip from step to step.
//
// A thread has four outputs and one part of the inputs: 4 x 4 weights for each four inputs ("quad") of its part. The
// first kQuads quads are in registers, the next in shared memory; those that do not fit are read from device memory at
// every step. A quad of a row is one 16-byte load for 16 multiplications. Adjacent threads have adjacent outputs and load
// the same quad, which shared memory serves by a broadcast.
//
// The partial sums of an output are added in shared memory: `partials`, [parts][rows][4 groups].
#pragma once

#include "cluster.cuh"
#include "tiling.h"

namespace dmm::cuda {

// The elements of [rows, columns] that belong to a thread: strided from (row, column) on, with adjacent threads on adjacent
// columns, so that accesses are coalesced.
struct Deal {
  int row, rows, column, columns;
  __device__ explicit Deal(int width) {
    columns = width < static_cast<int>(blockDim.x) ? width : static_cast<int>(blockDim.x);
    rows = columns > 0 ? static_cast<int>(blockDim.x) / columns : 1;
    const int thread = static_cast<int>(threadIdx.x);
    row = columns > 0 ? thread / columns : 0;
    column = columns > 0 ? thread % columns : 0;
    if (row >= rows) row = 0x7fffffff;  // a surplus thread
  }
};

// The assignment of rows to threads does not depend on the selected rows.
template <class Visit>
__device__ void for_rows(const Deal& deal, int first, int rows, int width, Visit visit) {
  int row = deal.row;
  while (row < first) row += deal.rows;
  for (; row < first + rows; row += deal.rows)
    for (int column = deal.column; column < width; column += deal.columns) visit(row, column);
}

template <class Visit>
__device__ void for_each(const Deal& deal, int rows, int width, Visit visit) {
  for_rows(deal, 0, rows, width, visit);
}

// `Source` returns the weight of an output and an input of the block's slice, zero outside of the matrix.
template <int kQuads, class Source>
class Weights {
 public:
  // `shared` has space for Tiling::shared_weights() elements.
  __device__ Weights(const Tiling& tiling, float* shared, const Source& source)
      : tiling_(tiling), source_(source), shared_(reinterpret_cast<float4*>(shared)) {
    const int at_once = tiling.groups_at_once(), thread = static_cast<int>(threadIdx.x);
    group_ = thread % at_once;
    part_ = thread / at_once;
    if (part_ >= tiling.parts) return;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
#pragma unroll
      for (int o = 0; o < 4; ++o) in_registers_[i][o] = load(group_, i, o);
    }
    for (int i = 0; i < tiling.in_shared; ++i)
      for (int o = 0; o < 4; ++o) *shared_at(i, o) = load(group_, kQuads + i, o);
  }

  // Computes partial sums of up to kChunk rows, `x` [rows][stride], where x must be zero past the inputs.
  __device__ void multiply(int rows, const float* x, float* partials) const {
    if (part_ >= tiling_.parts) return;
    switch (rows) {
      case 1: return multiply_rows<1>(x, partials);
      case 2: return multiply_rows<2>(x, partials);
      case 3: return multiply_rows<3>(x, partials);
      case 4: return multiply_rows<4>(x, partials);
      default: return;
    }
  }

 private:
  __device__ float4 load(int group, int quad, int o) const {
    const int output = 4 * group + o, input = 4 * (quad * tiling_.parts + part_);
    return float4{source_(output, input), source_(output, input + 1), source_(output, input + 2),
                  source_(output, input + 3)};
  }
  __device__ float4* shared_at(int i, int o) const {
    return shared_ + (i * 4 + o) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  }

  template <int kRows>
  __device__ void multiply_rows(const float* x, float* partials) const {
    const int stride = tiling_.stride();
    // Only matrices with very many outputs need more than one iteration; they keep no weights on chip.
    for (int group = group_; group < tiling_.groups; group += tiling_.groups_at_once()) {
      const float* at = x + 4 * part_;
      float sums[kRows][4] = {};
      const auto add = [&](const float4 (&w)[4]) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float4 in = *reinterpret_cast<const float4*>(at + r * stride);
#pragma unroll
          for (int o = 0; o < 4; ++o) {
            sums[r][o] += w[o].x * in.x;
            sums[r][o] += w[o].y * in.y;
            sums[r][o] += w[o].z * in.z;
            sums[r][o] += w[o].w * in.w;
          }
        }
        at += 4 * tiling_.parts;
      };
#pragma unroll
      for (int i = 0; i < kQuads; ++i) add(in_registers_[i]);
      for (int i = 0; i < tiling_.in_shared; ++i) {
        const float4 w[4] = {*shared_at(i, 0), *shared_at(i, 1), *shared_at(i, 2), *shared_at(i, 3)};
        add(w);
      }
      for (int i = kQuads + tiling_.in_shared; i < tiling_.quads; ++i) {
        const float4 w[4] = {load(group, i, 0), load(group, i, 1), load(group, i, 2), load(group, i, 3)};
        add(w);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        *reinterpret_cast<float4*>(partials + ((part_ * kRows + r) * tiling_.groups + group) * 4) =
            float4{sums[r][0], sums[r][1], sums[r][2], sums[r][3]};
    }
  }

  const Tiling& tiling_;
  const Source source_;
  float4* const shared_;
  int group_, part_;
  float4 in_registers_[kQuads > 0 ? kQuads : 1][4];
};

// Adds the partial sums of an output, for a chunk of `rows`.
__device__ inline float add_up(const Tiling& tiling, const float* partials, int rows, int row, int output) {
  const int width = tiling.width();
  const float* at = partials + row * width + output;
  float sum = 0;
  for (int part = 0; part < tiling.parts; ++part) sum += at[part * rows * width];
  return sum;
}

}  // namespace dmm::cuda
