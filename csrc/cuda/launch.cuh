// Launching kernels, on clusters or without; compiled by nvcc alone.
#pragma once

#include <cuda_runtime.h>

namespace dmm::cuda {

// Null, or what went wrong.
template <class Kernel, class Args>
const char* launch_blocks(Kernel kernel, const Args& args, int blocks, int threads, size_t shared_bytes,
                          void* stream) {
  kernel<<<blocks, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Null, or what went wrong.
template <class Kernel, class Args>
const char* launch_clusters(Kernel kernel, const Args& args, int blocks, int cluster_size, int threads,
                            size_t shared_bytes, void* stream) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(shared_bytes));
  // More than 8 blocks to a cluster have to be asked for.
  if (error == cudaSuccess && cluster_size > 8)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster_size);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  error = cudaLaunchKernelEx(&config, kernel, args);
  if (error == cudaSuccess) error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace dmm::cuda
