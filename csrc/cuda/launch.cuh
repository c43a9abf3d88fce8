// Launching kernels, on clusters or without; compiled by nvcc alone.
#pragma once

#include <cuda_runtime.h>

namespace dmm::cuda {

// Null, or what went wrong. The runtime keeps an error until it is asked for: the next launch may not find this one.
inline const char* text_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

// Null, or what went wrong.
template <class Kernel, class Args>
const char* launch_blocks(Kernel kernel, const Args& args, int blocks, int threads, size_t shared_bytes,
                          void* stream) {
  kernel<<<blocks, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args);
  return text_of(cudaGetLastError());
}

// A launch on clusters, which config points into: it may not move.
struct ClusterLaunch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute size{};

  template <class Kernel>
  cudaError_t prepare(Kernel kernel, int blocks, int cluster_size, int threads, size_t shared_bytes) {
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    if (cluster_size > 1) {  // a GPU without clusters does not know the attribute
      size.id = cudaLaunchAttributeClusterDimension;
      size.val.clusterDim.x = static_cast<unsigned>(cluster_size);
      size.val.clusterDim.y = size.val.clusterDim.z = 1;
      config.attrs = &size;
      config.numAttrs = 1;
    }
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    // More than 8 blocks to a cluster have to be asked for.
    if (error != cudaSuccess || cluster_size <= 8) return error;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
};

// Null, or what went wrong.
template <class Kernel, class Args>
const char* launch_clusters(Kernel kernel, const Args& args, int blocks, int cluster_size, int threads,
                            size_t shared_bytes, void* stream) {
  ClusterLaunch launch;
  cudaError_t error = launch.prepare(kernel, blocks, cluster_size, threads, shared_bytes);
  launch.config.stream = static_cast<cudaStream_t>(stream);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&launch.config, kernel, args);
  return text_of(error);
}

}  // namespace dmm::cuda
