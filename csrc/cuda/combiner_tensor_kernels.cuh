// The instantiated kernels on tensor cores.
#pragma once

#include <cstddef>

#include "combiner_tensor.cuh"
#include "scan_kernels.h"

namespace dmm::cuda {

template <class Args>
struct TensorKernel {
  int blocks, unit_tiles, input_steps, output_tiles, unit_steps;
  void (*run)(Args);
};

#define DMM_FORWARD(...) {__VA_ARGS__, combiner_tensor_fwd_kernel<__VA_ARGS__>},
#define DMM_BACKWARD(...) {__VA_ARGS__, combiner_tensor_bwd_kernel<__VA_ARGS__>},
constexpr TensorKernel<CombinerTensor> kTensorForward[] = {DMM_TENSOR_FORWARD_KERNELS(DMM_FORWARD)};
constexpr TensorKernel<CombinerTensorBackward> kTensorBackward[] = {DMM_TENSOR_BACKWARD_KERNELS(DMM_BACKWARD)};
#undef DMM_FORWARD
#undef DMM_BACKWARD

// Returns null if there is no kernel for these arguments.
template <class Args, size_t kCount>
auto find_tensor_kernel(const TensorKernel<Args> (&kernels)[kCount], const Args& a) -> void (*)(Args) {
  for (const TensorKernel<Args>& k : kernels)
    if (k.blocks == a.cluster_size && k.unit_tiles == a.to_units.tiles && k.input_steps == a.to_units.steps &&
        k.output_tiles == a.from_units.tiles && k.unit_steps == a.from_units.steps)
      return k.run;
  return nullptr;
}
inline auto tensor_kernel(const CombinerTensor& a) { return find_tensor_kernel(kTensorForward, a); }
inline auto tensor_kernel(const CombinerTensorBackward& a) { return find_tensor_kernel(kTensorBackward, a); }

}  // namespace dmm::cuda
