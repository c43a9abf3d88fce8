// The kernels that take one row at a time, for the sizes that there are.
#pragma once

#include <cstddef>

#include "combiner_rows.cuh"

namespace dmm::cuda {

// For clusters of so many blocks and two tiles, of a block's units and of what comes of them: the outputs of eight lanes
// and the inputs of a lane.
template <class Args>
struct RowsKernel {
  int blocks, units, to_inputs, outputs, from_inputs;
  void (*run)(Args);
};

template <int... kSizes>
constexpr RowsKernel<CombinerRows> rows_forward() {
  return {kSizes..., combiner_rows_fwd_kernel<kSizes...>};
}
template <int... kSizes>
constexpr RowsKernel<CombinerRowsBackward> rows_backward() {
  return {kSizes..., combiner_rows_bwd_kernel<kSizes...>};
}

// dmm_fast/cuda/lane_tiles.py has the same lists.
constexpr RowsKernel<CombinerRows> kRowsForward[] = {rows_forward<5, 4, 13, 8, 15>(), rows_forward<6, 4, 13, 8, 13>(),
                                                     rows_forward<8, 4, 13, 8, 10>(), rows_forward<8, 4, 16, 8, 16>()};
constexpr RowsKernel<CombinerRowsBackward> kRowsBackward[] = {
    rows_backward<5, 4, 25, 4, 15>(), rows_backward<6, 4, 25, 4, 13>(), rows_backward<8, 4, 25, 4, 10>(),
    rows_backward<8, 4, 32, 4, 16>()};

// Null where there is none for these arguments.
template <class Args, size_t kCount>
auto find_rows_kernel(const RowsKernel<Args> (&kernels)[kCount], const Args& a) -> void (*)(Args) {
  for (const RowsKernel<Args>& k : kernels)
    if (k.blocks == a.cluster_size && k.units == a.to_units.group_outputs && k.to_inputs == a.to_units.lane_inputs &&
        k.outputs == a.from_units.group_outputs && k.from_inputs == a.from_units.lane_inputs)
      return k.run;
  return nullptr;
}
inline auto rows_kernel(const CombinerRows& a) { return find_rows_kernel(kRowsForward, a); }
inline auto rows_kernel(const CombinerRowsBackward& a) { return find_rows_kernel(kRowsBackward, a); }
constexpr const char* kNoRowsKernel = "no kernel has lane tiles of these sizes";

}  // namespace dmm::cuda
