// The instantiated kernels for one or two rows at a time.
#pragma once

#include <cstddef>

#include "combiner_rows.cuh"
#include "scan_kernels.h"

namespace dmm::cuda {

template <class Args>
struct SizedKernel {
  int blocks, units, to_inputs, outputs, from_inputs, rows;
  void (*run)(Args);
};

template <int... kSizes>
constexpr SizedKernel<CombinerRows> rows_forward() {
  return {kSizes..., combiner_rows_fwd_kernel<kSizes...>};
}
template <int... kSizes>
constexpr SizedKernel<CombinerRowsBackward> rows_backward() {
  return {kSizes..., combiner_rows_bwd_kernel<kSizes...>};
}

#define DMM_FORWARD(...) rows_forward<__VA_ARGS__>(),
#define DMM_BACKWARD(...) rows_backward<__VA_ARGS__>(),
constexpr SizedKernel<CombinerRows> kRowsForward[] = {DMM_ROWS_FORWARD_KERNELS(DMM_FORWARD)};
constexpr SizedKernel<CombinerRowsBackward> kRowsBackward[] = {DMM_ROWS_BACKWARD_KERNELS(DMM_BACKWARD)};
#undef DMM_FORWARD
#undef DMM_BACKWARD

// Returns null if there is no kernel for these arguments.
template <class Args, size_t kCount>
auto find_rows_kernel(const SizedKernel<Args> (&kernels)[kCount], const Args& a) -> void (*)(Args) {
  for (const SizedKernel<Args>& k : kernels)
    if (k.blocks == a.cluster_size && k.units == a.to_units.group_outputs && k.to_inputs == a.to_units.lane_inputs &&
        k.outputs == a.from_units.group_outputs && k.from_inputs == a.from_units.lane_inputs &&
        k.rows == a.ragged.rows_per_group)
      return k.run;
  return nullptr;
}
inline auto rows_kernel(const CombinerRows& a) { return find_rows_kernel(kRowsForward, a); }
inline auto rows_kernel(const CombinerRowsBackward& a) { return find_rows_kernel(kRowsBackward, a); }

}  // namespace dmm::cuda
